"""Prints what TensorBoard's own reader finds in a folder of events, as one JSON document.

Usage: read_events.py FOLDER
"""

import json
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2


def png_size(data):
    """Width and height of a PNG, from its own header."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG"
    return list(struct.unpack(">II", data[16:24]))


def hparams_of(content):
    """The content of the hparams plugin: its kind, and what it says."""
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    kind = data.WhichOneof("data")
    if kind == "session_start_info":
        values = data.session_start_info.hparams
        return kind, {name: getattr(v, v.WhichOneof("kind")) for name, v in values.items()}
    if kind == "session_end_info":
        return kind, data.session_end_info.status
    return kind, None


def main(folder):
    # Zero keeps everything; the default would keep a sample of the images only.
    events = EventAccumulator(folder, size_guidance={k: 0 for k in ("scalars", "images", "histograms", "tensors")})
    events.Reload()
    tags = events.Tags()
    texts = {}
    hparams = {}
    for tag in tags["tensors"]:
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        if plugin == "text":
            texts[tag] = [v.decode() for e in events.Tensors(tag) for v in e.tensor_proto.string_val]
    for tag, content in events.PluginTagToContent("hparams").items():
        kind, value = hparams_of(content)
        hparams[kind] = value
    json.dump(
        {
            "scalars": {t: [[e.step, e.value] for e in events.Scalars(t)] for t in tags["scalars"]},
            "histograms": {
                t: [
                    {
                        "step": e.step,
                        "min": e.histogram_value.min,
                        "max": e.histogram_value.max,
                        "num": e.histogram_value.num,
                        "counts": list(e.histogram_value.bucket),
                        "limits": list(e.histogram_value.bucket_limit),
                    }
                    for e in events.Histograms(t)
                ]
                for t in tags["histograms"]
            },
            "images": {
                t: [
                    {"step": e.step, "size": [e.width, e.height], "png": png_size(e.encoded_image_string)}
                    for e in events.Images(t)
                ]
                for t in tags["images"]
            },
            "texts": texts,
            "hparams": hparams,
        },
        sys.stdout,
    )


main(sys.argv[1])
