"""What the graphs of transformer families have in common."""

from app.definitions.family_parts.graph import GraphBuilder


class Layers:
    """Layers written into `graph`, with parameters of one dtype, "F32" or "F16"."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.graph = GraphBuilder()

    def normalise(self, value: str, name: str, size: int, epsilon: float) -> str:
        """Return the LayerNormalization of a value [..., size], whose inner part is computed in F32."""
        weight, bias = (self.graph.parameter(f"{name}.{part}", self.dtype, [size]) for part in ("weight", "bias"))
        return self.graph.op("LayerNormalization", value, weight, bias, axis=-1, epsilon=epsilon)

    def attend(self, query: str, key: str, value: str, hidden_scores: str) -> str:
        """Return softmax(Q K + hidden scores) V with the heads side by side again, [batch, sequence, heads, size].

        Query and value are [batch, heads, sequence, size], the key is [batch, heads, size, sequence]. Scores are F32,
        as is `hidden_scores`, which is added to them.
        """
        graph = self.graph
        scores = self.to_f32(graph.op("MatMul", query, key))
        weights = graph.op("Softmax", graph.op("Add", scores, hidden_scores), axis=-1)
        return graph.op("Transpose", graph.op("MatMul", self.from_f32(weights), value), perm=[0, 2, 1, 3])

    def to_f32(self, value: str) -> str:
        """Return a value of the parameters' dtype in F32."""
        return value if self.dtype == "F32" else self.graph.cast(value, "F32")

    def from_f32(self, value: str) -> str:
        """Return an F32 value in the parameters' dtype."""
        return value if self.dtype == "F32" else self.graph.cast(value, self.dtype)
