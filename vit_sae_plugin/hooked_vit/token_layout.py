"""Which token is what: class token, registers, prompts, and the patches with their places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

TokenRole = Literal["class", "register", "prompt", "patch", "image"]
TOKEN_ROLES: tuple[str, ...] = get_args(TokenRole)

TokenKind = Literal["all", "patches", "cls"]
TOKEN_KINDS: tuple[str, ...] = get_args(TokenKind)


@dataclass(frozen=True)
class TokenLayout:
    """What each token of a token axis is.

    A model has one (``model.cfg.tokens``), and so has whatever reads some of its tokens
    (``select``) or a hook with fewer of them (``at_hook``). Prompts and registers belong
    to ``"all"`` only; they are never patches.
    """

    grid: tuple[int, int]
    """Rows and columns of patches."""

    roles: tuple[TokenRole, ...]
    """One a token: ``"class"``; ``"register"`` (also DeiT's distillation token); ``"prompt"``;
    ``"patch"``; or ``"image"``, one pooled vector of the whole image, which is no token."""

    patch_numbers: tuple[int, ...]
    """One a token: the patch's number, row-major from the top left; −1 for what is no patch."""

    def __post_init__(self) -> None:
        n_patches = self.grid[0] * self.grid[1]
        if len(self.roles) != len(self.patch_numbers):
            raise ValueError(
                f"roles has {len(self.roles)} tokens and patch_numbers {len(self.patch_numbers)}; "
                "want one of each for every token"
            )
        if unknown := set(self.roles) - set(TOKEN_ROLES):
            raise ValueError(f"roles holds {sorted(unknown)}; want {', '.join(TOKEN_ROLES)}")
        numbers = [n for n, role in zip(self.patch_numbers, self.roles, strict=True) if n != -1]
        is_patch = [role == "patch" for role in self.roles]
        if is_patch != [number != -1 for number in self.patch_numbers]:
            raise ValueError(
                f"patch_numbers are {numbers}; want −1 for just the tokens that are no patches"
            )
        if len(set(numbers)) != len(numbers) or not all(0 <= n < n_patches for n in numbers):
            raise ValueError(
                f"patch_numbers are {numbers}; want different ones in 0 to {n_patches - 1}, the "
                f"patches of grid {self.grid}"
            )

    @classmethod
    def of_grid(
        cls,
        grid: tuple[int, int],
        front: Sequence[TokenRole] = (),
        back: Sequence[TokenRole] = (),
    ) -> Self:
        """All patches of a grid in row-major order, with other tokens in front and behind.

        Args:
            grid: rows and columns of patches.
            front: roles of the tokens in front of the patches, such as ``("class",)``.
            back: roles of the tokens behind them, such as ``("prompt", "prompt")``.
        """
        n_patches = grid[0] * grid[1]
        roles = (*front, *["patch"] * n_patches, *back)
        numbers = (*[-1] * len(front), *range(n_patches), *[-1] * len(back))
        return cls(tuple(grid), roles, numbers)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.roles)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.roles.count(r)} {r}" for r in dict.fromkeys(self.roles))  # type: ignore[arg-type]
        return f"TokenLayout(grid={self.grid}, tokens: {counts or 'none'})"

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens in front of the first patch (all of them, where there is no patch)."""
        return self.roles.index("patch") if self.has("patch") else len(self)

    def has(self, role: TokenRole) -> bool:
        """Whether there is a token of this role."""
        return role in self.roles

    def role_positions(self, *roles: TokenRole) -> Int[Tensor, " n"]:
        """Where the tokens of these roles stand, in order; empty where there are none."""
        return torch.tensor([i for i, r in enumerate(self.roles) if r in roles], dtype=torch.long)

    @cached_property
    def patch_of_token(self) -> Int[Tensor, " token"]:
        """Patch number (row-major) of each token; −1: not a patch."""
        return torch.tensor(self.patch_numbers, dtype=torch.long)

    @cached_property
    def row_and_column(self) -> Int[Tensor, "token 2"]:
        """Row and column of each token on the grid; −1 and −1: not a patch."""
        patch = self.patch_of_token
        n_columns = self.grid[1]
        places = torch.stack([patch // n_columns, patch % n_columns], dim=1)
        return torch.where(patch.unsqueeze(1) >= 0, places, -1)

    def positions(self, token_kind: str) -> Int[Tensor, " n_selected"]:
        """Where the tokens of a kind stand on the token axis.

        Args:
            token_kind: ``"all"`` is every token; ``"patches"`` those on the grid, in row-major
                order wherever they stand; ``"cls"`` the class token.

        Raises:
            ValueError: the kind is unknown, or there is no such token.
        """
        check_token_kind(token_kind)
        if token_kind == "all":
            return torch.arange(len(self))
        if token_kind == "cls":
            found = self.role_positions("class")
        else:
            found = self.role_positions("patch")
            found = found[self.patch_of_token[found].argsort()]
        if len(found) == 0:
            missing = "class token" if token_kind == "cls" else "patches"
            raise ValueError(
                f"token_kind is {token_kind!r}, but there is no {missing} among these "
                f"{len(self)} tokens; want {self._other_kinds()}"
            )
        return found

    def select(self, positions: Iterable[int] | Int[Tensor, " n"]) -> TokenLayout:
        """The layout of chosen tokens, in the order given: that of an SAE of patches, say."""
        chosen = [int(position) for position in positions]
        return TokenLayout(
            self.grid,
            tuple(self.roles[i] for i in chosen),
            tuple(self.patch_numbers[i] for i in chosen),
        )

    def at_hook(self, shape: Sequence[int]) -> TokenLayout:
        """The layout of a hook's own token axis, which may be shorter than the blocks'.

        Args:
            shape: of the hook's value: ``[batch, token, …]``, or ``[batch, d]`` of a pooled hook.

        Returns:
            One ``"image"`` for a pooled hook; the patches alone, or all but the prompts, for a
            hook in front of where the others are added.

        Raises:
            ValueError: the number of tokens is none of these.
        """
        if len(shape) == 2:
            return self.pooled()
        n_tokens = shape[1]
        unprompted = [i for i, role in enumerate(self.roles) if role != "prompt"]
        for positions in (range(len(self)), unprompted, self.role_positions("patch")):
            if len(positions) == n_tokens:
                return self.select(positions)
        raise ValueError(
            f"the hook has {n_tokens} tokens; want {len(self)} as in the blocks, or "
            f"{self.roles.count('patch')} patches (for images of another size than the model's "
            "wrap it with image_size=)"
        )

    def pooled(self) -> TokenLayout:
        """The layout of a pooled hook: one vector of the whole image."""
        return TokenLayout(self.grid, ("image",), (-1,))

    def on_grid(self, values: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch row column"]:
        """Token values at their places on the grid; NaN where a patch is not among the tokens.

        Raises:
            ValueError: there are not as many values as tokens.
        """
        if values.shape[-1] != len(self):
            raise ValueError(
                f"values has {values.shape[-1]} tokens in its last axis; want {len(self)}"
            )
        patch = self.patch_of_token.to(values.device)
        flat = values.new_full((*values.shape[:-1], self.grid[0] * self.grid[1]), torch.nan)
        flat[..., patch[patch >= 0]] = values[..., patch >= 0]
        return flat.view(*values.shape[:-1], *self.grid)

    def _other_kinds(self) -> str:
        kinds = ["'all'", *(["'patches'"] if self.has("patch") else [])]
        return " or ".join([*kinds, *(["'cls'"] if self.has("class") else [])])


def check_token_kind(token_kind: str) -> None:
    """Raise a ValueError unless ``token_kind`` is ``"all"``, ``"patches"`` or ``"cls"``."""
    if token_kind not in TOKEN_KINDS:
        raise ValueError(f"token_kind is {token_kind!r}; want 'all', 'patches' or 'cls'")
