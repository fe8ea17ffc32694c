"""Sizes that the config classes of Hugging Face transformers have where a config.json is silent.

Prints src/model/hf/classes.rs for the model types that the loader names: channels, heads, channels of a head where the
class fixes them, positions. Run it with the loader's folder: `model_classes.py src/model/hf > src/model/hf/classes.rs`.
"""

import importlib
import inspect
import os
import pathlib
import re
import sys

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import transformers

root = pathlib.Path(transformers.__file__).parent / "models"
sources = [pathlib.Path(sys.argv[1]) / name for name in ["families.rs", "others.rs"]]
# Names stand before the first bracket that closes a row's list; labels of keys are no model types and find no class.
wanted = {name for source in sources for name in re.findall(r'"([\w.-]+)"', source.read_text())}


def classes():
    for folder in sorted(root.iterdir()):
        path = folder / f"configuration_{folder.name}.py"
        if not path.exists():
            continue
        try:
            module = importlib.import_module(f"transformers.models.{folder.name}.{path.stem}")
        except ImportError:
            continue
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and getattr(kind, "model_type", None):
                yield kind.model_type, kind


def number(config, *names):
    values = config.to_dict()
    for name in names:
        # A size that differs by layer can be read in the file's keys alone.
        value = values.get(name)
        if value is None and "per_layer_config" not in values:
            value = getattr(config, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) and value >= 0:
            return int(value)
    return 0


HIDDEN = ["hidden_size", "d_model", "n_embd", "embed_dim"]
HEADS = ["num_attention_heads", "num_heads", "n_head", "encoder_attention_heads", "heads"]
HEAD = ["head_dim", "attention_head_dim"]
POSITIONS = ["max_position_embeddings", "n_positions", "max_sequence_length"]

rows = {}
for model_type, kind in classes():
    if model_type not in wanted or model_type in rows:
        continue
    try:
        config = kind()
    except Exception:  # noqa: BLE001
        continue
    hidden, heads = number(config, *HIDDEN), number(config, *HEADS)
    head = 0
    for name in HEADS:
        if not head and number(config, name):
            # A head's size that does not follow the number of heads is the class's own.
            try:
                other = kind(**{name: 2 * number(config, name)})
                if number(other, *HEAD) == number(config, *HEAD):
                    head = number(config, *HEAD)
            except Exception:  # noqa: BLE001
                pass
    rows[model_type] = (hidden, heads, head, number(config, *POSITIONS))

print(f"""//! Sizes of config classes where a config.json is silent, as transformers {transformers.__version__} has
//! them; 0 for none.
//!
//! Written by `tools/golden/model_classes.py`.

/// `model_type`, channels, heads, channels of a head where they do not follow from these, positions.
#[rustfmt::skip]
pub(super) static CLASSES: &[(&str, usize, usize, usize, usize)] = &[""")
for name in sorted(rows):
    print(f'    ("{name}", {", ".join(map(str, rows[name]))}),')
print("];")
