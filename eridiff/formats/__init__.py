"""The files that eridiff writes: safetensors and Parquet, equal content in equal bytes, sealed by a checksum."""
