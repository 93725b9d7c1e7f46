// Made by `make docs` from schemas/report.py.

export const REASONS = {
  "no_saving": "At that rank, the factors would save no parameters, or no bytes of a quantized weight.",
  "rank_zero": "The ratio allows no factors of the smallest rank, or `auto` finds nothing but noise.",
  "not_finite": "The weight, or its difference to the base, contains NaN or infinity.",
  "not_converged": "No solver gave factors that pass the accuracy check.",
  "out_of_range": "The factors exceed the range of the storage dtype, or the squares of W that of float64.",
  "names_taken": "The checkpoint already has a tensor with the name of a factor.",
  "kept_by_budget": "The budget achieves a smaller total error if this weight stays dense, or is left out.",
  "more_than_a_linear": "The module has tensors beside `weight` and `bias`, such as a scale or a mask.",
  "adapter": "The weight is one of the two matrices of a LoRA adapter.",
  "embedding": "By its name it is an embedding, and an adapter holds differences of linear layers only.",
  "not_called": "An attention with an `in_proj_weight` reads this weight without calling the module.",
  "tied": "Another module has the same weight, by the metadata or as equal bytes that are not selected.",
  "unchanged": "The weight equals that of the base.",
  "group": "The width of the weight is no multiple of `group`, so its rows cannot be cut into groups.",
  "depthwise": "The kernel has one input for each output or group; an override with `conv` factors it.",
  "kernel_sides": "The `conv` is for kernels with another number of sides.",
  "transposed_kernel": "The `conv` does not allow transposed convolutions.",
  "shape_differs": "The tensors of the quantized weight do not agree on its shape."
};

export const RULES = {
  "include": "No pattern of `include` fits the module.",
  "factored_before": "The tensor is a factor that an earlier job has made.",
  "vector": "The tensor has fewer than two dimensions.",
  "dtype": "Tensors of this dtype cannot be factored.",
  "no_lora_pair": "The tensor is in no LoRA pair of which a lower rank is known to be right.",
  "encoding": "The weight is quantized, and names, shapes and config.json do not tell for certain how.",
  "stack": "The tensor has three or more dimensions, such as the weights of all experts in one.",
  "convolution": "The weight belongs to a convolution, and no `conv` is given.",
  "no_module": "The name is `weight` alone, so there is no module to name the factors after.",
  "in_projection": "The weight of an attention, such as `in_proj_weight`, belongs to no module of its own.",
  "recurrent": "The weight of a recurrent layer, such as `weight_ih_l0`, is no module of its own.",
  "reparametrized": "The tensor is a part of a weight, such as `weight_v` of a weight norm.",
  "other_name": "The name does not end in `.weight`."
};
