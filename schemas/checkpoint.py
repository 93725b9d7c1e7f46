"""Checkpoints: the safetensors header and the shard index, and every check on them."""

from schemas.fault import CheckpointError
from schemas.frame import MAX_HEADER_BYTES, HeaderScan, read_header, scan_file
from schemas.header import MAX_TENSORS, Header, parse_header
from schemas.index import CHECKPOINT_ID, FILE_NAME, INDEX_ENDING, MAX_INDEX_BYTES, ShardIndex, parse_index
from schemas.shards import check_shards
from schemas.tensor import DTYPE_BITS, FLOAT_DTYPES, MAX_DIMENSIONS, MAX_NAME_BYTES, TensorInfo

__all__ = [
    "CHECKPOINT_ID",
    "DTYPE_BITS",
    "FILE_NAME",
    "FLOAT_DTYPES",
    "INDEX_ENDING",
    "MAX_DIMENSIONS",
    "MAX_HEADER_BYTES",
    "MAX_INDEX_BYTES",
    "MAX_NAME_BYTES",
    "MAX_TENSORS",
    "CheckpointError",
    "Header",
    "HeaderScan",
    "ShardIndex",
    "TensorInfo",
    "check_shards",
    "parse_header",
    "parse_index",
    "read_header",
    "scan_file",
]
