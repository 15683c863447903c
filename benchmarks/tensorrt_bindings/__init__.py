"""What the Python bindings of each release of TensorRT have, held against what the adapter uses of them."""
