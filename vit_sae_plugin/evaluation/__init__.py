"""How good is this SAE: by itself, inside its model, and at finding what is in an image."""

from vit_sae_plugin.evaluation.embedding_suite import evaluate_embeddings
from vit_sae_plugin.evaluation.evaluate import evaluate_sae
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.image_activations import ImageActivations
from vit_sae_plugin.evaluation.linear_probe import LinearProbe, fit_linear_probe

__all__ = [
    "EvaluationReport",
    "ImageActivations",
    "LinearProbe",
    "evaluate_embeddings",
    "evaluate_sae",
    "fit_linear_probe",
]
