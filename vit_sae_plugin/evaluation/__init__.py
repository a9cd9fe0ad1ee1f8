"""How good is this SAE: by itself, inside its model, and at finding what is in an image."""

from vit_sae_plugin.evaluation.concept_suite import concept_suite
from vit_sae_plugin.evaluation.embedding_suite import evaluate_embeddings
from vit_sae_plugin.evaluation.evaluate import evaluate_sae
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.image_rows import image_rows, labelled_rows
from vit_sae_plugin.evaluation.latent_files import SparseLatents, load_latents
from vit_sae_plugin.evaluation.linear_probe import LinearProbe, fit_linear_probe
from vit_sae_plugin.evaluation.localization import localize
from vit_sae_plugin.evaluation.save_latents import save_embedding_latents, save_latents

__all__ = [
    "EvaluationReport",
    "LinearProbe",
    "SparseLatents",
    "concept_suite",
    "evaluate_embeddings",
    "evaluate_sae",
    "fit_linear_probe",
    "image_rows",
    "labelled_rows",
    "load_latents",
    "localize",
    "save_embedding_latents",
    "save_latents",
]
