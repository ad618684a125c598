"""What is known of the operators of torch, by name: which are linear, join values, or multiply them.

A name stands for all overloads unless :mod:`alignver.kernel.network.degrees` asks for more. An operator that is in no
list is not wrong, it is unknown: its arguments must not depend on the parameters in question.
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


COPIES = words("""
    view _unsafe_view reshape permute transpose t numpy_T mT movedim swapaxes unsqueeze squeeze expand expand_as
    broadcast_to slice select narrow diagonal unfold split split_with_sizes chunk unbind tensor_split flip roll rot90
    repeat tile clone contiguous alias detach lift_fresh_copy lift_fresh _to_copy to type_as flatten unflatten ravel
    index index_select gather embedding take take_along_dim reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d native_channel_shuffle squeeze_copy view_copy expand_copy getitem repeat_interleave
""")
"""Each entry of the result is an entry of the first tensor (or of an argument that is a list)."""

LINEAR = COPIES | words("""
    neg negative positive sum mean cumsum trace tril triu diag diag_embed avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa im2col col2im
""")
"""Linear and homogeneous in the first tensor, with coefficients that depend on the other arguments."""

JOINS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "sub", "subtract", "rsub"), ("self", "other")),
    **dict.fromkeys(("cat", "stack", "concat", "concatenate", "hstack", "vstack", "dstack"), ("tensors",)),
    "where": ("self", "other"),
    "masked_fill": ("self", "value"),
    "scatter": ("self", "src", "value"),
    "scatter_add": ("self", "src"),
    "scatter_reduce": ("self", "src"),
    "index_put": ("self", "values"),
    "_unsafe_index_put": ("self", "values"),
    "index_add": ("self", "source"),
    "index_copy": ("self", "source"),
    "index_fill": ("self", "value"),
    "slice_scatter": ("self", "src"),
    "select_scatter": ("self", "src"),
    "diagonal_scatter": ("self", "src"),
    "masked_scatter": ("self", "source"),
    "lerp": ("self", "end"),
    "constant_pad_nd": ("self", "value"),
    "copy": ("src",),
    "fill": ("value",),
    "full": ("fill_value",),
    "full_like": ("fill_value",),
    "new_full": ("fill_value",),
    "scalar_tensor": ("s",),
}
"""Sums, selections and assemblies of the named arguments; the others are coefficients."""

PRODUCTS: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(("mul", "multiply", "vdot"), (("self", "other"), "")),
    "dot": (("self", "tensor"), ""),
    **dict.fromkeys(("matmul", "inner", "kron"), (("self", "other"), "")),
    **dict.fromkeys(("mm", "bmm"), (("self", "mat2"), "")),
    "mv": (("self", "vec"), ""),
    **dict.fromkeys(("outer", "ger"), (("self", "vec2"), "")),
    "linalg_vecdot": (("x", "y"), ""),
    "einsum": (("tensors",), ""),
    "_trilinear": (("i1", "i2", "i3"), ""),
    "bilinear": (("input1", "input2", "weight"), "bias"),
    "linear": (("input", "weight"), "bias"),
    "addmm": (("mat1", "mat2"), "self"),
    **dict.fromkeys(("baddbmm", "addbmm"), (("batch1", "batch2"), "self")),
    "addmv": (("mat", "vec"), "self"),
    "addr": (("vec1", "vec2"), "self"),
    "addcmul": (("tensor1", "tensor2"), "self"),
    **dict.fromkeys(("convolution", "conv1d", "conv2d", "conv3d"), (("input", "weight"), "bias")),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (("input", "weight"), "bias")),
}
"""Linear in each of the factors, plus one more argument if it is named."""

BAGS = words("embedding_bag _embedding_bag _embedding_bag_forward_only")
"""Sums (mode 0) or means (mode 1) of rows of a table; further results are integers."""

ZEROS = words("zeros zeros_like new_zeros")
EMPTY = words("""
    empty empty_like new_empty empty_strided new_empty_strided empty_permuted resize as_strided as_strided_copy
    as_strided_scatter
""")
"""Memory without a value, or the memory of whatever lies beside a tensor."""

RANDOM = ("rand", "normal", "bernoulli", "multinomial", "poisson", "binomial", "dropout", "uniform", "exponential",
          "cauchy", "geometric", "rrelu", "gumbel", "dirichlet", "gamma")  # fmt: skip
"""An operator whose name contains one of these may draw random numbers (lgamma and its kin, which do not, excepted)."""
