"""What neurons do: their roles in the prediction of the next token and in attention (paper §5)."""
