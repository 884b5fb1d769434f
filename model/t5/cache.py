"""Keys and values kept between the steps of decoding.

Shape suffixes: B rows (batch or batch x beams), H heads of this tensor rank, M positions, K d_kv.
"""

from __future__ import annotations

from torch import Tensor

from model.t5.attention import KeyValues


class LayerCache:
    """Of one decoder layer: what self attention has seen (grows), and the encoder's keys and values (fixed)."""

    def __init__(self, *, cross: KeyValues, max_length: int) -> None:
        self.cross = cross
        self.length = 0
        rows, heads, _, d_kv = cross.keys_BHMK.shape
        # Allocated once at full length, so that a step copies one position instead of the whole past.
        self._keys_BHMK = cross.keys_BHMK.new_zeros(rows, heads, max_length, d_kv)
        self._values_BHMK = cross.values_BHMK.new_zeros(rows, heads, max_length, d_kv)

    def extend(self, new: KeyValues) -> KeyValues:
        """Append positions and return everything seen so far."""
        start, end = self.length, self.length + new.keys_BHMK.shape[2]
        assert end <= self._keys_BHMK.shape[2], f"cache of {self._keys_BHMK.shape[2]} positions is full"
        self._keys_BHMK[:, :, start:end] = new.keys_BHMK
        self._values_BHMK[:, :, start:end] = new.values_BHMK
        self.length = end
        return KeyValues(keys_BHMK=self._keys_BHMK[:, :, :end], values_BHMK=self._values_BHMK[:, :, :end])

    def reorder(self, rows_B: Tensor) -> None:
        """Row i continues what row `rows_B[i]` was (beams). Rows only move between beams of one prompt.

        The encoder's keys and values are the same for all beams of a prompt and stay.
        """
        self._keys_BHMK = self._keys_BHMK.index_select(0, rows_B)
        self._values_BHMK = self._values_BHMK.index_select(0, rows_B)
