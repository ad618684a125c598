"""What the checks say of stock architectures: verdicts, errors, and whether a model comes out as it went in.

    python benchmarks/stock_models.py [--every] [WORD ...]

Small configurations of `transformers` (of the extra ``integrations``; without it, they are left out) and of torch.nn,
each with batches as its users have them: dicts of token ids and attention masks, images, sequences. A model that is
refused in float64 with the remedy ``dtype="same"`` is checked with it, and marked. Of each model:
alignment, with its rigor and subject; the Gram matrix against plain autograd on a copy in float64, one output of one
sample at a time; every tensor, mode, hook, gradient and random state before and after. ``--every`` asks all questions
of ``check_model`` and adds two records of the tracker. WORDs select models by their names.

The exit code is 1 for a model that is harmed, an error that is not a refusal, a Gram matrix that is off by more than
1e-12, or if fewer than 96 in 100 get a verdict.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections import Counter

import torch
from torch import nn
from torch.nn import functional as F

import alignver as av

SAMPLES, LENGTH, WORDS = 4, 8, 40
SECONDS = 60.0
SHARE, ACCURACY = 0.96, {"float64": 1e-12, "same": 1e-5}

_TEXT = {"vocab_size": WORDS, "num_labels": 2, "pad_token_id": 0}
_ENCODER = {**_TEXT, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
            "max_position_embeddings": 32}  # fmt: skip
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
_GPT = {**_TEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
_VIT = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "num_labels": 2}  # fmt: skip
_STAGES = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": 2}
_SWIN = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2,
         "num_labels": 2}  # fmt: skip
_PYRAMID = {**_STAGES, "num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2]}


def without(options, *names):
    return {name: value for name, value in options.items() if name not in names}


TEXTS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "deberta", "ernie", "megatron-bert",
                     "nystromformer", "data2vec-text", "ibert"), _ENCODER),
    "distilbert": {**_TEXT, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32},
    "electra": {**_ENCODER, "embedding_size": 16},
    "deberta-v2": {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "albert": {**_ENCODER, "embedding_size": 8},
    "squeezebert": {**_ENCODER, "embedding_size": 16, "q_groups": 2, "k_groups": 2, "v_groups": 2,
                    "post_attention_groups": 1, "intermediate_groups": 2, "output_groups": 2},
    "mobilebert": {**_ENCODER, "embedding_size": 8, "true_hidden_size": 8, "intra_bottleneck_size": 8},
    "convbert": {**_ENCODER, "embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1},
    "fnet": without(_ENCODER, "num_attention_heads"),
    "funnel": {**_TEXT, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1]},
    "modernbert": {**_ENCODER, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "rembert": {**_ENCODER, "input_embedding_size": 8, "output_embedding_size": 8},
    "roformer": {**_ENCODER, "embedding_size": 16},
    "xlnet": {**_TEXT, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    "big_bird": {**_ENCODER, "attention_type": "original_full"},
    "longformer": {**_ENCODER, "attention_window": 4, "max_position_embeddings": 40},
    "canine": {**_ENCODER, "downsampling_rate": 2, "upsampling_kernel_size": 2, "num_hash_buckets": 16,
               "local_transformer_stride": 4},
    "gpt2": _GPT, "openai-gpt": _GPT, "gptj": {**_GPT, "rotary_dim": 4}, "ctrl": {**_GPT, "dff": 24},
    "gpt_neo": {**_TEXT, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32,
                "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": without(_DECODER, "num_key_value_heads"), "persimmon": without(_DECODER, "num_key_value_heads"),
    "opt": {**_ENCODER, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "bloom": {**_TEXT, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": {**_TEXT, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi", "phi3", "stablelm", "starcoder2"), _DECODER),
    **{name: {**_DECODER, "head_dim": 8} for name in ("gemma", "gemma2", "qwen3")},
    "mixtral": {**_DECODER, "num_local_experts": 2, "num_experts_per_tok": 1},
    "mpt": {**_TEXT, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32},
    "t5": {**_TEXT, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "eos_token_id": 2,
           "decoder_start_token_id": 0},
    "bart": {**_TEXT, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "bos_token_id": 1,
             "eos_token_id": 2, "max_position_embeddings": 32},
}  # fmt: skip
IMAGES = {
    **dict.fromkeys(("vit", "beit", "dinov2", "vit_msn", "data2vec-vision", "ijepa"), _VIT),
    "swin": _SWIN, "swinv2": _SWIN, "focalnet": {**without(_SWIN, "num_heads", "window_size"), "hidden_sizes": [8, 16],
                                                 "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "convnext": {**_STAGES, "num_stages": 2}, "convnextv2": {**_STAGES, "num_stages": 2},
    "resnet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "regnet": {**_STAGES, "embedding_size": 8, "groups_width": 4},
    "bit": {**_STAGES, "embedding_size": 8, "hidden_sizes": [32, 32], "num_groups": 4},
    "segformer": {**_PYRAMID, "sr_ratios": [2, 1], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]},
    "poolformer": {**_PYRAMID, "padding": [1, 1], "mlp_ratio": 2.0},
    "pvt": {**_PYRAMID, "image_size": 16, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2],
            "strides": [4, 2], "num_attention_heads": [1, 1], "mlp_ratios": [2, 2]},
    "mobilenet_v1": {"image_size": 16, "depth_multiplier": 0.1, "num_labels": 2},
    "mobilevit": {"image_size": 32, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8] * 7, "num_labels": 2,
                  "num_attention_heads": 2},
}  # fmt: skip


class Of(nn.Module):
    """A function of some modules and the inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.parts, self.function = nn.ModuleDict(parts), function

    def forward(self, *inputs):
        return self.function(self.parts, *inputs)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inputs, outputs, norm, stride):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.skip(x))


def residual(norm):
    return nn.Sequential(Block(3, 6, norm, 1), Block(6, 8, norm, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 2))  # fmt: skip


def recurrent(kind):
    return Of(lambda p, x: p["out"](p["core"](x)[0][:, -1]), core=kind(5, 6, batch_first=True), out=nn.Linear(6, 2))


def unet():
    def run(p, x):
        a = p["down"](x)
        return p["out"](torch.cat([p["up"](p["middle"](a)), a], 1)).mean((2, 3))

    down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.SiLU())
    middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.SiLU())
    return Of(run, down=down, middle=middle, up=nn.ConvTranspose2d(8, 6, 2, 2), out=nn.Conv2d(12, 2, 1))


def graph():
    def run(p, features, adjacency):
        hidden = F.elu(p["first"](adjacency @ features))
        return p["out"](F.elu(p["second"](adjacency @ hidden)).mean(1))

    return Of(run, first=nn.Linear(4, 8), second=nn.Linear(8, 8), out=nn.Linear(8, 2))


def tabular():
    def run(p, numbers, categories):
        tokens = torch.cat([numbers[..., None] * p["scale"].weight + p["scale"].bias, p["table"](categories)], 1)
        return p["out"](p["core"](tokens).mean(1))

    scale, table = nn.LayerNorm((3, 8)), nn.Embedding(5, 8)
    return Of(run, scale=scale, table=table, core=encoder(), out=nn.Linear(8, 2))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def translation():
    core = nn.Transformer(8, 2, 1, 1, 16, 0.0, batch_first=True)
    return Of(lambda p, x: p["out"](p["core"](p["enter"](x), p["enter"](x)).mean(1)), enter=nn.Linear(5, 8), core=core,
              out=nn.Linear(8, 2))  # fmt: skip


def vgg():
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                         nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(32, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, 2))  # fmt: skip


def normalized(kind):
    return nn.Sequential(kind(nn.Linear(6, 16)), nn.Tanh(), kind(nn.Linear(16, 2)))


def mixer():
    def run(p, x):
        x = x + p["tokens"](p["norm"](x).mT).mT
        return p["out"](x + p["channels"](x)).mean(1)

    return Of(run, norm=nn.LayerNorm(5), tokens=nn.Linear(7, 7), channels=nn.Sequential(nn.Linear(5, 9), nn.GELU(),
              nn.Linear(9, 5)), out=nn.Linear(5, 2))  # fmt: skip


def siren():
    return Of(lambda p, x: p["out"](torch.sin(30 * p["enter"](x))), enter=nn.Linear(6, 16), out=nn.Linear(16, 2))


def word_bag():
    return nn.Sequential(nn.EmbeddingBag(WORDS, 6, sparse=True), nn.Linear(6, 2))


def vectors():
    return torch.randn(SAMPLES, 6)


def images():
    return torch.randn(SAMPLES, 3, 8, 8)


def sequences():
    return torch.randn(SAMPLES, 7, 5)


def words():
    return torch.randint(3, WORDS, (SAMPLES, LENGTH))


def graphs():
    links = (torch.rand(SAMPLES, 5, 5) > 0.5).float() + torch.eye(5)
    return torch.randn(SAMPLES, 5, 4), links / links.sum(-1, keepdim=True)


def table():
    return torch.randn(SAMPLES, 3), torch.randint(0, 5, (SAMPLES, 2))


PLAIN = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.Linear(16, 2)), vectors),
    "siren": (siren, vectors),
    "weight norm": (lambda: normalized(nn.utils.parametrizations.weight_norm), vectors),
    "spectral norm": (lambda: normalized(nn.utils.parametrizations.spectral_norm), vectors),
    "vgg": (vgg, images),
    "residual, batch norm": (lambda: residual(nn.BatchNorm2d), images),
    "residual, group norm": (lambda: residual(lambda width: nn.GroupNorm(2, width)), images),
    "u-net": (unet, images),
    **{kind.__name__.lower(): (lambda kind=kind: recurrent(kind), sequences) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
    "mixer": (mixer, sequences),
    "transformer": (translation, sequences),
    "graph convolution": (graph, graphs),
    "tabular transformer": (tabular, table),
    "bag of words": (word_bag, words),
}


def stock():
    """Return the configurations: name -> function that returns model, inputs and the name of the output."""
    cases = {name: (lambda pair=pair: (pair[0](), pair[1](), None)) for name, pair in PLAIN.items()}
    try:
        import transformers
    except ImportError:
        print("transformers is not installed: pip install 'alignver[integrations]'")
        return cases
    transformers.logging.set_verbosity_error()

    def text(name):
        config = transformers.AutoConfig.for_model(name, **TEXTS[name])
        ids, mask = words(), torch.ones(SAMPLES, LENGTH, dtype=torch.long)
        for sample, size in enumerate((8, 6, 7, 5)):  # padded, with an end of sequence as the last word
            ids[sample, size - 1], ids[sample, size:], mask[sample, size:] = 2, 0, 0
        if name in ("bart",):  # the end of a sequence has to be at one place
            ids, mask = torch.cat([words()[:, 1:], torch.full((SAMPLES, 1), 2)], 1), torch.ones_like(mask)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        return model, {"input_ids": ids, "attention_mask": mask}, "logits"

    def image(name):
        config = transformers.AutoConfig.for_model(name, **IMAGES[name])
        side = IMAGES[name].get("image_size", 16)
        model = transformers.AutoModelForImageClassification.from_config(config)
        return model, {"pixel_values": torch.randn(SAMPLES, 3, side, side)}, "logits"

    cases |= {name: (lambda name=name: text(name)) for name in TEXTS}
    return cases | {name: (lambda name=name: image(name)) for name in IMAGES}


def state(model):
    """Return what a check must leave as it is."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [len(getattr(module, hook)) for hook in hooks] for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "random state": torch.get_rng_state(),
    }


def harmed(before, after):
    """Return what differs."""

    def same(one, other):
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return torch.equal(one, other)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        return one is other or one == other

    return [name for name in before if not same(before[name], after[name])]


def oracle(model, X, select, dtype):
    """Return J J^T by autograd on a copy, one output of one sample at a time; in float64 unless the model cannot."""
    model = copy.deepcopy(model)
    model = model.double() if dtype == "float64" else model
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run(rows):
        named = X.items() if isinstance(X, dict) else enumerate(X if isinstance(X, tuple) else (X,))
        parts = {name: value[rows] for name, value in named}
        parts = {name: p.to(parameters[0].dtype) if p.is_floating_point() else p for name, p in parts.items()}
        return model(**parts)[select] if isinstance(X, dict) else model(*parts.values())

    gradients = []
    for output in range(run(slice(0, 2)).shape[1]):
        for sample in range(SAMPLES):
            value = run(slice(sample, sample + 1))[0, output]
            parts = torch.autograd.grad(value, parameters, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, parts)]
            gradients.append(torch.cat([part.flatten() for part in parts]))
    J = torch.stack(gradients)
    return J @ J.T


def ask(model, X, Y, select, every, dtype):
    """Return the result of alignment, and the Gram matrix."""
    options = {"loss": "cross_entropy", "select": select, "max_seconds": SECONDS, "dtype": dtype}
    result = (av.check_model(model, X, Y, **options)["alignment"] if every
              else av.check_alignment(model, X, Y, **options))  # fmt: skip
    adapted, x, _ = av.adapted(model, X, Y, select=select)
    if every:
        tracker = av.AlignmentTracker(adapted, x, Y, loss="cross_entropy", dtype=dtype)
        tracker.update()
        tracker.update()
    return result, av.gram(adapted, x, dtype=dtype)


def examine(build, every):
    """Return the row of one configuration."""
    torch.manual_seed(0)
    start = time.perf_counter()
    row = {"verdict": "-", "rigor": "", "subject": "", "said": "", "gram": 0.0, "raw": 0, "dtype": "float64"}
    try:
        model, X, select = build()
    except Exception as error:  # of the library whose model it is, for example of another version
        return {
            **row,
            "said": f"not built: {type(error).__name__}: {error}",
            "seconds": 0.0,
            "harmed": [],
        }
    model, Y = model.eval(), torch.arange(SAMPLES) % 2
    before = state(model)
    try:
        try:
            result, matrix = ask(model, X, Y, select, every, "float64")
        except av.InvalidInput as error:
            if "dtype='same'" not in str(error):
                raise
            row["dtype"] = "same"
            result, matrix = ask(model, X, Y, select, every, "same")
        row |= {"verdict": str(result.verdict), "rigor": str(result.rigor), "subject": str(result.subject)}
        if (result.rigor, result.subject) != ("PROOF", "NETWORK"):
            row["said"] = "; ".join(line for line in result.evidence if "about the network" in line)
        row["seconds"], row["harmed"] = time.perf_counter() - start, harmed(before, state(model))
        reference = oracle(model, X, select, row["dtype"])
        row["gram"] = float((matrix - reference).norm() / reference.norm())
    except av.InvalidInput as error:
        row["said"] = str(error)
    except Exception as error:  # what must not happen
        row |= {"said": f"{type(error).__name__}: {error}", "raw": 1}
    return {"seconds": time.perf_counter() - start, "harmed": harmed(before, state(model)), **row}


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", action="store_true", help="all questions, and the tracker")
    parser.add_argument("words", nargs="*", help="parts of names")
    options = parser.parse_args()
    rows = {}
    print(f"{'model':22} {'verdict':9} {'rigor':10} {'subject':15} {'gram':8} {'s':>5}  harmed, refusal or next step")
    for name, build in stock().items():
        if options.words and not any(word in name for word in options.words):
            continue
        row = rows[name] = examine(build, options.every)
        said = f"{', '.join(row['harmed'])} {row['said']}".strip() + (
            " (dtype='same')" if row["dtype"] == "same" else ""
        )
        print(f"{name:22} {row['verdict']:9} {row['rigor']:10} {row['subject']:15} {row['gram']:8.0e} "
              f"{row['seconds']:5.1f}  {said[:200]}", flush=True)  # fmt: skip
    answered = sum(row["verdict"] in ("HOLDS", "FAILS") for row in rows.values())
    off = [name for name, row in rows.items() if row["gram"] > ACCURACY[row["dtype"]]]
    hurt = [name for name, row in rows.items() if row["harmed"]]
    raw = sum(row["raw"] for row in rows.values())
    kinds = Counter(f"{row['verdict']} {row['rigor']} ({row['subject']})" for row in rows.values())
    print(f"{len(rows)} models: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    good = {
        f"a verdict for {answered} of {len(rows)} models, target 96 in 100": answered >= SHARE * len(rows),
        f"{raw} errors that are no refusals, target 0": raw == 0,
        f"{len(hurt)} models harmed, target 0" + f" ({', '.join(hurt)})" * bool(hurt): not hurt,
        f"{len(off)} Gram matrices off, target 0" + f" ({', '.join(off)})" * bool(off): not off,
    }
    for words, met in good.items():
        print(f"{words}  {'met' if met else 'NOT met'}")
    return int(not all(good.values()))


if __name__ == "__main__":
    sys.exit(main())
