"""What a run saves: pieces of tensors over ranks, in safetensors files with a manifest written last."""
