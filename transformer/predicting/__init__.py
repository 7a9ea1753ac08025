"""Predictions of a run of any kind for inputs of the user: labels with probabilities, texts, forecasts. Like what
`writing` generates, a prediction is the same whatever inputs are beside it."""
