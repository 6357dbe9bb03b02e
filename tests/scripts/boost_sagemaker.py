"""An XGBoost script in the style of SageMaker's script mode, with an output_fn of its own."""

import argparse
import json
import os

import numpy as np
import xgboost


def model_fn(model_dir):
    booster = xgboost.Booster()
    booster.load_model(os.path.join(model_dir, "xgboost-model.ubj"))
    return booster


def input_fn(request_body, request_content_type):
    if request_content_type == "text/csv":
        return xgboost.DMatrix(np.array([[float(x) for x in line.split(",")] for line in request_body.splitlines()]))
    raise ValueError(f"Content type {request_content_type} is not supported.")


def output_fn(prediction, accept):
    return json.dumps([round(float(x), 3) for x in prediction]), accept


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_depth", type=int)
    parser.add_argument("--eta", type=float)
    parser.add_argument("--objective", type=str)
    parser.add_argument("--num_round", type=int)
    parser.add_argument("--model_dir", type=str, default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--train", type=str, default=os.environ.get("SM_CHANNEL_TRAIN"))
    parser.add_argument("--validation", type=str, default=os.environ.get("SM_CHANNEL_VALIDATION"))
    args, _ = parser.parse_known_args()
    matrices = {}
    for name in ("train", "validation"):
        folder = getattr(args, name)
        data = np.concatenate([np.loadtxt(os.path.join(folder, file), delimiter=",") for file in os.listdir(folder)])
        matrices[name] = xgboost.DMatrix(data[:, 1:], data[:, 0])
    booster = xgboost.train(
        {"max_depth": args.max_depth, "eta": args.eta, "objective": args.objective, "nthread": 1},
        matrices["train"],
        num_boost_round=args.num_round,
        evals=[(matrices["validation"], "validation"), (matrices["train"], "train")],
    )
    booster.save_model(os.path.join(args.model_dir, "xgboost-model.ubj"))
