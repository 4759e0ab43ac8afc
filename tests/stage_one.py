"""The layout of the first weight file of MGLD-VSR, from the configuration of its family."""

from ldm.engine.assemble import CONFIGS, read_model, weight_files

ENTRIES = weight_files(read_model(CONFIGS / "mgldvsr" / "model.yaml"))
STAGE_ONE = next(entry.layout for entry in ENTRIES if entry.name == "mgldvsr_unet")
