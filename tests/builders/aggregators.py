"""Built-in aggregators in sizes that are quick to fit."""

from milbench import plugins

SMALL = {  # the official sizes learn the same, only slower; a contract bag would fill no more than one region of HIPT
    **{entry.name: f"{entry.name}[dim=64]" for entry in plugins.entries() if "dim" in entry.parameters.model_fields},
    "transmil": "transmil[landmarks=16,hidden=64]",
    "hipt": "hipt[region=4,depth=2,dim=48]",
    "gigapath-random": "gigapath-random[depth=2,dim=64,heads=4]",
}
