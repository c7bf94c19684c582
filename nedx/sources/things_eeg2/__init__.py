"""THINGS-EEG2 (Gifford et al. 2022): EEG of ten people who saw 16,740 images of THINGS."""

from nedx.sources.things_eeg2.fetching import pull
from nedx.sources.things_eeg2.preprocessed import open_preprocessed
from nedx.sources.things_eeg2.raw import open_raw

__all__ = ["open_preprocessed", "open_raw", "pull"]
