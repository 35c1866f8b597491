"""GigaPath's slide encoder, a small one, with class token and with mean readout."""

import torch
from milbench_registry.gigapath import segment_lengths

from milbench import Bag, plugins
from tests.fidelity.harness import FORWARD, adapter, by_official_name, close, gradients


@adapter("gigapath_slide_encoder_small", "gigapath_slide_encoder_small_gap")
def gigapath(vector):
    setup = vector.about["constructor"]
    readout = "mean" if setup["global_pool"] else "cls"
    ffn = len(vector.weights["encoder.layers.0.ffn.fc1.bias"])
    model = plugins.resolve(
        f"gigapath-random[dim={setup['embed_dim']},depth={setup['depth']},heads=4,ffn={ffn},readout={readout},"
        f"grid_size={setup['slide_ngrids']},patch_pixels={setup['tile_size']},max_pixels={setup['max_wsi_size']}]"
    ).build(setup["in_chans"], 2)
    model.load_official(vector.weights)
    model.eval()
    assert str(segment_lengths(setup["max_wsi_size"], setup["tile_size"])) == vector.about["segment_length"]
    assert str(segment_lengths(262144, 256)) == vector.about["segment_length_official_default"]
    table = vector.arrays["pos_embed"][0, 1:]  # row gx * 64 + gy
    rows = torch.arange(len(table))
    corners = torch.stack([rows // setup["slide_ngrids"], rows % setup["slide_ngrids"]], dim=1) * setup["tile_size"]
    codes = model.positions(Bag(torch.zeros(len(table), 1), corners + 255, 256.0))
    close(codes, table, FORWARD, "positions")
    for case in vector.cases():
        x = case.tensor("x", grad=True)
        bag = Bag(x[0], case.tensor("coords")[0], 256.0)
        model.zero_grad()
        *layers, out = model.embeddings(bag)
        close(torch.stack(layers), case.arrays["out_layers"], FORWARD, "layers")
        close(out, case.arrays["out_last"], FORWARD, "embedding")
        close(model(bag).extras["embedding"], case.arrays["out_last"], FORWARD, "embedding of a prediction")
        (out * case.tensor("w")[0]).sum().backward()
        gradients(vector, case, x, by_official_name(model, vector))
