"""Let transformers load compressed folders: `import eckart.transformers`, then `from_pretrained` as always.

The import registers the quantization method `eckart`, which a compressed folder's config.json names.
"""

from eckart.errors import missing_extra

try:
    from eckart.transformers.config import EckartConfig
    from eckart.transformers.hooks import install
    from eckart.transformers.quantizer import EckartQuantizer
except ModuleNotFoundError as error:
    raise missing_extra(error, "transformers") from error

install()

__all__ = ["EckartConfig", "EckartQuantizer"]
