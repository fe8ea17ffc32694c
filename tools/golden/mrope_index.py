"""Positions on three axes of sequences with images, videos and sound, as transformers' get_rope_index makes them.

Each case holds the stretches of a sequence, ["text", n], ["together", n], ["image" | "video", [t, h, w], interval] or
["sounding", [t, h, w], interval, audio tokens], the merge sizes, the positions [3, tokens] and rope_deltas.

Writes tests/golden/mrope_index.json.
"""

import datetime
import importlib
import json
import os
import random
from types import MethodType, SimpleNamespace

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers

draws = random.Random(7)
cases = []


def grid(most_t, merge, temporal=1):
    return [
        draws.randint(1, most_t) * temporal,
        draws.randint(1, 4) * merge,
        draws.randint(1, 4) * merge,
    ]


def owner(folder, name):
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    return getattr(module, name)


def keep(name, spans, merge, temporal, positions, delta, **more):
    cases.append(
        {
            "name": name,
            "spans": spans,
            "merge": merge,
            "temporal_merge": temporal,
            "positions": [[int(x) for x in row] for row in positions],
            "delta": int(delta),
        }
        | more
    )


VISION = [
    ("qwen2_vl", "Qwen2VLModel"),
    ("qwen2_5_vl", "Qwen2_5_VLModel"),
    ("qwen3_vl", "Qwen3VLModel"),
    ("glm4v", "Glm4vModel"),
    ("ernie4_5_vl_moe", "Ernie4_5_VLMoeModel"),
]
for folder, name in VISION:
    kind = owner(folder, name)
    temporal = 2 if folder == "ernie4_5_vl_moe" else 1
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=4, temporal_merge_size=temporal)
    this = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    this.get_vision_position_ids = MethodType(kind.get_vision_position_ids, this)
    for _ in range(6):
        spans, kinds, images, videos, seconds = [], [], [], [], []
        for _ in range(draws.randint(1, 3)):
            text = draws.randint(1, 6)
            spans.append(["text", text])
            kinds += [0] * text
            if draws.random() < 0.5:
                images.append(grid(1, 2))
                tokens = images[-1][0] * images[-1][1] * images[-1][2] // 4
                spans.append(["image", images[-1], 1.0])
                kinds += [1] * tokens
            else:
                # transformers 5.24 splits Qwen3-VL's and GLM-4V's videos into frames
                frames = folder in ["qwen3_vl", "glm4v"]
                video = grid(1 if frames else 5, 2, temporal)
                second = draws.choice([0.5, 1.0, 1.25, 2.0 / 3])
                videos.append(video)
                seconds.append(second)
                interval = 4 * second if folder == "qwen2_5_vl" else 1.0
                spans.append(["video", video, interval])
                kinds += [2] * (video[0] * video[1] * video[2] // (4 * temporal))
        spans.append(["text", 3])
        kinds += [0] * 3
        arguments = {
            "input_ids": torch.arange(len(kinds))[None],
            "mm_token_type_ids": torch.tensor([kinds]),
            "image_grid_thw": torch.tensor(images) if images else None,
            "video_grid_thw": torch.tensor(videos) if videos else None,
        }
        if folder == "qwen2_5_vl":
            arguments["second_per_grid_ts"] = torch.tensor(seconds)
        positions, delta = kind.get_rope_index(this, **arguments)
        keep(folder, spans, 2, temporal, positions[:, 0].tolist(), delta[0, 0], kinds=kinds)

TEXT, IMAGE, VIDEO, AUDIO, VISION_START, VISION_END, AUDIO_START, AUDIO_END = range(1, 9)
OMNI = [
    ("qwen2_5_omni", "Qwen2_5OmniPreTrainedModelForConditionalGeneration", 25, 2, 8),
    ("qwen3_omni_moe", "Qwen3OmniMoePreTrainedModelForConditionalGeneration", 13, None, None),
]
for folder, name, per_second, seconds_per_chunk, _ in OMNI:
    kind = owner(folder, name)
    config = SimpleNamespace(
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        vision_start_token_id=VISION_START,
        audio_start_token_id=AUDIO_START,
        position_id_per_seconds=per_second,
        seconds_per_chunk=seconds_per_chunk,
        audio_config=SimpleNamespace(n_window=50),
    )
    this = SimpleNamespace(config=config, spatial_merge_size=2)
    for method in ["get_llm_pos_ids_for_vision", "get_chunked_index"]:
        if hasattr(kind, method):
            setattr(this, method, MethodType(getattr(kind, method), this))
    module = importlib.import_module(kind.__module__)

    def audio_tokens(length, folder=folder, module=module):
        if folder == "qwen2_5_omni":
            return ((length - 1) // 2 + 1 - 2) // 2 + 1
        return int(module._get_feat_extract_output_lengths(torch.tensor(length), 50))

    for use_audio in [False, True, True, True, False, True]:
        spans, ids, images, videos, seconds, audios = [], [], [], [], [], []

        def text(count, ids=ids, spans=spans):
            ids.extend([TEXT] * count)
            if spans and spans[-1][0] == "text":
                spans[-1][1] += count
            else:
                spans.append(["text", count])

        def mark(*tokens, ids=ids, spans=spans, text=text, folder=folder):
            # Qwen2.5-Omni gives both marks of a video with sound one position.
            if len(tokens) == 2 and folder == "qwen2_5_omni":
                spans.append(["together", 2])
            else:
                text(0)
                spans[-1][1] += len(tokens)
            ids.extend(tokens)

        for what in draws.sample(["image", "audio", "video", "video"], 3):
            text(draws.randint(2, 5))
            if what == "image":
                images.append(grid(1, 2))
                mark(VISION_START)
                ids += [IMAGE] * (images[-1][1] * images[-1][2] // 4)
                spans.append(["image", images[-1], float(per_second)])
                mark(VISION_END)
            elif what == "audio":
                audios.append(draws.randint(20, 400))
                mark(AUDIO_START)
                count = audio_tokens(audios[-1])
                ids += [AUDIO] * count
                text(0)
                spans[-1][1] += count
                mark(AUDIO_END)
            else:
                videos.append(grid(5, 2))
                seconds.append(draws.choice([1.0, 2.0]))
                count = videos[-1][0] * videos[-1][1] * videos[-1][2] // 4
                interval = seconds[-1] * per_second
                if use_audio:
                    audios.append(draws.randint(20, 900))
                    mark(VISION_START, AUDIO_START)
                    heard = audio_tokens(audios[-1])
                    ids += [VIDEO] * count + [AUDIO] * heard
                    spans.append(["sounding", videos[-1], interval, heard])
                    mark(AUDIO_END, VISION_END)
                else:
                    mark(VISION_START)
                    ids += [VIDEO] * count
                    spans.append(["video", videos[-1], interval])
                    mark(VISION_END)
        if not images and not videos:
            continue
        text(2)
        ids_tensor = torch.tensor([ids])
        positions, delta = kind.get_rope_index(
            this,
            ids_tensor,
            torch.tensor(images) if images else None,
            torch.tensor(videos) if videos else None,
            torch.ones_like(ids_tensor),
            use_audio,
            torch.tensor(audios) if audios else None,
            torch.tensor(seconds) if seconds else None,
        )
        chunk = per_second * seconds_per_chunk if seconds_per_chunk else None
        keep(folder, spans, 2, 1, positions[:, 0].tolist(), delta[0, 0], ids=ids, chunk=chunk, sounding=use_audio)

meta = {
    "script": "tools/golden/mrope_index.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "date": datetime.date.today().isoformat(),
}
print('{"meta": ' + json.dumps(meta) + ', "cases": [')
print(",\n".join(json.dumps(case, separators=(",", ":")) for case in cases))
print("]}")
