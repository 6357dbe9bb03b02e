"""A scikit-learn script in the style of SageMaker's script mode."""

import argparse
import os

import joblib
import numpy as np
from sklearn.tree import DecisionTreeClassifier


def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_leaf_nodes", type=int, default=-1)
    parser.add_argument("--output-data-dir", type=str, default=os.environ["SM_OUTPUT_DATA_DIR"])
    parser.add_argument("--model-dir", type=str, default=os.environ["SM_MODEL_DIR"])
    parser.add_argument("--train", type=str, default=os.environ["SM_CHANNEL_TRAIN"])
    args = parser.parse_args()
    files = [os.path.join(args.train, name) for name in os.listdir(args.train)]
    if len(files) == 0:
        raise ValueError(f"There are no files in {args.train}.")
    data = np.concatenate([np.loadtxt(name, delimiter=",") for name in files])
    model = DecisionTreeClassifier(max_leaf_nodes=args.max_leaf_nodes, random_state=0).fit(data[:, 1:], data[:, 0])
    print(f"train:accuracy={model.score(data[:, 1:], data[:, 0])};")
    joblib.dump(model, os.path.join(args.model_dir, "model.joblib"))
