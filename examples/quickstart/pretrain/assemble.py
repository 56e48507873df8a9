"""Write the quickstart's small Sana as a folder that `SanaPipeline.from_pretrained` loads.

Run in examples/quickstart: `python -m pretrain.assemble AUTOENCODER OUT` makes the starting point of pretraining, its
transformer untrained; with `--transformer TRAINED --half` it makes the checkpoint that the quickstart fine-tunes.
"""

import argparse
import string
from pathlib import Path

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from pretrain.shapes import BACKGROUNDS, COLOURS, KNOWN_SHAPES, SIZE

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
SPACE = "\u2581"
TEXT_WIDTH = 128
EMBEDDING_SCALE = 4.0  # a random encoder must not drown the word in its context


def word_pieces(word: str) -> list[tuple[str, str]]:
    """Merges that build the word from its characters, left to right."""
    return [(word[:end], word[end]) for end in range(1, len(word))]


def build_tokenizer() -> GemmaTokenizer:
    """A tokenizer with one token for each word of the known captions, and characters or bytes to spell any other."""
    words = ["a", "an", "on", "background", *KNOWN_SHAPES, *COLOURS, *BACKGROUNDS]
    merges = [piece for word in words for piece in word_pieces(SPACE + word)]  # first, so that these win
    merges += [piece for word in words for piece in word_pieces(word)]
    characters = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    spelling = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*SPECIAL, *spelling, *characters, *("".join(merge) for merge in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return GemmaTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), add_bos_token=True)


def build_text_encoder(num_tokens: int, seed: int) -> Gemma2Model:
    """A frozen, random Gemma 2 of two layers whose output mostly tells which token stands where."""
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=num_tokens,
        hidden_size=TEXT_WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=2048,
        sliding_window=2048,
        pad_token_id=SPECIAL.index("<pad>"),
        eos_token_id=SPECIAL.index("<eos>"),
        bos_token_id=SPECIAL.index("<bos>"),
    )
    model = Gemma2Model(config)
    with torch.no_grad():
        model.embed_tokens.weight.normal_(std=EMBEDDING_SCALE / TEXT_WIDTH**0.5)
    return model.eval().requires_grad_(False)


def build_transformer(autoencoder: AutoencoderDC, seed: int) -> SanaTransformer2DModel:
    """An untrained Sana transformer for the autoencoder's latents of a 64-pixel picture."""
    torch.manual_seed(seed)
    heads, head_width = 5, 32
    return SanaTransformer2DModel(
        in_channels=autoencoder.config.latent_channels,
        out_channels=autoencoder.config.latent_channels,
        num_attention_heads=heads,
        attention_head_dim=head_width,
        num_layers=6,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=head_width,
        cross_attention_dim=heads * head_width,
        caption_channels=TEXT_WIDTH,
        sample_size=SIZE // autoencoder.spatial_compression_ratio,
        patch_size=1,
        interpolation_scale=1,
    )


def main() -> None:
    """Command line: put the parts together and save them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--transformer", type=Path, help="a trained transformer; without it, an untrained one")
    parser.add_argument("--half", action="store_true", help="save in fp16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    autoencoder = AutoencoderDC.from_pretrained(arguments.autoencoder)
    tokenizer = build_tokenizer()
    if arguments.transformer:
        transformer = SanaTransformer2DModel.from_pretrained(arguments.transformer)
    else:
        transformer = build_transformer(autoencoder, arguments.seed)
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer), arguments.seed),
        vae=autoencoder,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    pipeline.to(dtype=torch.float16 if arguments.half else torch.float32)
    for part in (transformer, autoencoder):
        part.register_to_config(_name_or_path="")  # where it was made is of no use to anybody else
    pipeline.save_pretrained(arguments.folder)
    num_parameters = sum(weight.numel() for weight in transformer.parameters())
    num_bytes = sum(file.stat().st_size for file in arguments.folder.rglob("*") if file.is_file())
    print(f"transformer of {num_parameters:,} parameters, {num_bytes / 1e6:.1f} MB in {arguments.folder}")


if __name__ == "__main__":
    main()
