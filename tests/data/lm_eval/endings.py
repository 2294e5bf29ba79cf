"""A metric of a task's own: how surprising an ending is, and whether it is what the model itself would say."""


def surprise(doc, results):
    ((nats, greedy),) = results
    return {"surprise": -nats / len(doc["end"]), "greedy": float(greedy)}


def largest(items):
    return max(items)
