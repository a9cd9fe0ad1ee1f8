"""Image sources, and the loader that turns them into batches of pixels."""

from vit_sae_plugin.datasets.array_images import ArrayImages
from vit_sae_plugin.datasets.benchmark_sets import BENCHMARK_SETS, BenchmarkImages, BenchmarkSet
from vit_sae_plugin.datasets.folder_images import FolderImages
from vit_sae_plugin.datasets.hugging_face_images import HuggingFaceImages
from vit_sae_plugin.datasets.image_decoding import DecodingLimits, UnreadableImageError
from vit_sae_plugin.datasets.image_loader import ImageBatch, ImageLoader
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    NoReadableImagesError,
)
from vit_sae_plugin.datasets.open_images import check_source_from_file, open_images
from vit_sae_plugin.datasets.scene_object import SceneObject
from vit_sae_plugin.datasets.shape_scenes import Scene, ShapeScenes
from vit_sae_plugin.datasets.skipped_images import SkippedImages
from vit_sae_plugin.datasets.subsets import (
    SelectedImages,
    few_shot,
    few_shot_splits,
    of_classes,
)
from vit_sae_plugin.datasets.webdataset_images import WebDatasetImages
from vit_sae_plugin.datasets.worker_processes import WorkerDiedError

__all__ = [
    "BENCHMARK_SETS",
    "ArrayImages",
    "BenchmarkImages",
    "BenchmarkSet",
    "DecodingLimits",
    "FolderImages",
    "HuggingFaceImages",
    "ImageBatch",
    "ImageLoader",
    "ImageRecord",
    "ImageSource",
    "NoReadableImagesError",
    "Scene",
    "SceneObject",
    "SelectedImages",
    "ShapeScenes",
    "SkippedImages",
    "UnreadableImageError",
    "WebDatasetImages",
    "WorkerDiedError",
    "check_source_from_file",
    "few_shot",
    "few_shot_splits",
    "of_classes",
    "open_images",
]
