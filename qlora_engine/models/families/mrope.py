"""Positions in time, height and width of the tokens around and of a clip (M-RoPE, arXiv 2409.12191).

Text counts on in all three; a block of vision tokens spans a grid from where the text stopped, and the text
after it goes on behind the grid's longer side. The published models count like that, so we must, too.
"""

from collections.abc import Sequence

import torch


def block(steps: int, rows: int, columns: int, seconds: float = 1.0) -> torch.Tensor:
    """Positions [3, steps * rows * columns] of a grid at 0; `seconds` between steps, in position units."""
    # In float32 and rounded down, as the models do it: other roundings would differ by one here and there.
    time = (torch.arange(steps) * torch.tensor(seconds, dtype=torch.float32)).long()
    grid = torch.meshgrid(time, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(grid).reshape(3, -1)


def positions(ids: Sequence[int], placeholder: int, grid: torch.Tensor) -> torch.Tensor:
    """[4, length]: text positions, and on them time, height and width.

    `grid` is the `block` that every run of ``grid.shape[1]`` placeholders stands in.
    """
    length = len(ids)
    found = torch.empty(3, length, dtype=torch.long)
    side = int(grid[1:].max()) + 1 if grid.numel() else 0
    place = reached = 0
    while place < length:
        if ids[place] == placeholder:
            end = place + grid.shape[1]
            found[:, place:end] = grid + reached
            reached += side
        else:
            end = next((at for at in range(place, length) if ids[at] == placeholder), length)
            found[:, place:end] = torch.arange(end - place) + reached
            reached += end - place
        place = end
    return torch.cat([torch.arange(length)[None], found])
