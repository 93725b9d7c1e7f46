"""What only a compressed model's folder has: names of its weights, and entries of its config.json."""

QUANTIZATION = "quantization_config"
QUANT_METHOD = "eckart"
# The weights have names that transformers does not look for, instead of these.
USUAL_NAMES = {
    "eckart.safetensors": "model.safetensors",
    "eckart.safetensors.index.json": "model.safetensors.index.json",
}
# The entry of config.json that names the weights: here a file that does not exist. Without
# `import eckart.transformers`, transformers fails and shows its name.
WEIGHTS_NAME = "transformers_weights"
MISSING_WEIGHTS = "import-eckart.transformers-first.safetensors"
