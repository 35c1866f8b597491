"""Built-in aggregators in sizes that are quick to fit."""

from milbench import plugins

LINEAR = ("retnet", "gla", "mamba-random", "mamba-single", "vmamba")
SMALL = {  # the official sizes learn the same, only slower; a contract bag would fill no more than one region of HIPT
    "transmil": "transmil[landmarks=16,hidden=64]",
    "hipt": "hipt[region=4,depth=2,dim=48]",
    "gigapath-random": "gigapath-random[depth=2,dim=64,heads=4]",
    **{entry.name: f"{entry.name}[dim=64]" for entry in plugins.entries() if "longmil" in entry.name or entry.name in LINEAR},
    "full-attention": "full-attention[dim=64]",
}
