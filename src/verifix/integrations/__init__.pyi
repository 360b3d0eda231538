from .lightning import LightningCorrection as LightningCorrection
from .sklearn import CorrectedClassifier as CorrectedClassifier
from .transformers import TrainerCorrection as TrainerCorrection
