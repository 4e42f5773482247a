#!/usr/bin/python3
"""The calls of a kubelet to an engine, from a shell: cri.py VERB ARGUMENT...

The engine is at $CRI; ids are kept in files that are named as pods and containers are. Messages are put together and taken apart by the
numbers of their fields: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto.
"""
import json
import os
import sys

import grpc


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def message(*fields):
    """Of (number, value): a number, text, a message, or a list of these."""
    out = b""
    for number, value in fields:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                out += varint(number << 3) + varint(int(one))
            elif one is not None:
                data = one.encode() if isinstance(one, str) else one
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def fields(data):
    """The numbers of a message's fields, each with its last value."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        elif key & 7 == 2:
            size = number()
            found[key >> 3] = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {key & 7}")
    return found


def call(method, request=b""):
    with grpc.insecure_channel("unix://" + os.environ["CRI"]) as channel:
        try:
            return fields(channel.unary_unary("/runtime.v1.RuntimeService/" + method)(request, timeout=60))
        except grpc.RpcError as error:
            print(error.details(), file=sys.stderr)
            sys.exit(f"{method}: {error.code().name}")


def identity(name):
    with open("id-" + name) as file:
        return file.read()


def keep(name, given):
    with open("id-" + name, "w") as file:
        file.write(given[1].decode())


def pod_config(name, network):
    namespaces = message((1, 2 if network == "host" else 0), (2, 1))
    metadata = message((1, name), (2, "uid-" + name), (3, "default"))
    security = message((1, namespaces), (6, network == "privileged"))
    linux = message((1, "/kubepods/pod-" + name), (2, security))
    return message((1, metadata), (2, "" if network == "host" else name), (3, f"{os.getcwd()}/logs"), (8, linux))


MODES = {"pod": 0, "container": 1, "node": 2}


def container_config(name, asked):
    capabilities = message((1, asked.get("add", [])), (2, asked.get("drop", [])))
    user = message((1, asked["user"])) if "user" in asked else None
    seccomp = message((1, 0)) if asked.get("seccomp") else None
    security = message(
        (1, capabilities), (2, asked.get("privileged", False)), (3, message((2, MODES[asked.get("pid", "container")]))), (5, user),
        (7, asked.get("readonly", False)), (11, asked.get("nnp", False)), (13, asked.get("masked", [])), (15, seccomp),
    )
    limits = message((4, asked["memory"])) if "memory" in asked else None
    mounts = [message((1, inside), (2, host), (3, read_only)) for host, inside, read_only in asked.get("mounts", [])]
    environment = [message((1, key), (2, value)) for key, value in asked.get("env", {}).items()]
    image = message((1, os.environ["IMAGE"]))
    return message(
        (1, message((1, name))), (2, image), (3, asked["command"]), (5, asked.get("cwd", "")), (6, environment), (7, mounts),
        (11, name + ".log"), (14, asked.get("tty", False)), (15, message((1, limits), (2, security))),
    )


def main(verb, *words):
    if verb == "version":
        print(call("Version")[2].decode())
    elif verb == "pod":
        name, network = words
        keep(name, call("RunPodSandbox", message((1, pod_config(name, network)))))
    elif verb == "create":
        pod, network, name, asked = words
        config = container_config(name, json.loads(asked))
        keep(name, call("CreateContainer", message((1, identity(pod)), (2, config), (3, pod_config(pod, network)))))
    elif verb == "state":
        status = fields(call("ContainerStatus", message((1, identity(words[0]))))[1])
        state = {0: "created", 1: "running", 2: "exited"}[status.get(3, 0)]
        print(state, status.get(7, 0), status.get(10, b"").decode())
    elif verb == "exec":
        name, *command = words
        done = call("ExecSync", message((1, identity(name)), (2, command), (3, 30)))
        print(done.get(1, b"").decode(), end="")
        print(done.get(2, b"").decode(), end="", file=sys.stderr)
        sys.exit(done.get(3, 0))
    elif verb == "used":
        stats = fields(call("ContainerStats", message((1, identity(words[0]))))[1])
        for number, what in (2, "processor"), (3, "memory"):
            usage = fields(fields(stats.get(number, b"")).get(2, b"")).get(1, 0)
            print(what, "is used" if usage else "is not used")
    elif verb == "limit":
        name, memory = words
        call("UpdateContainerResources", message((1, identity(name)), (2, message((4, int(memory))))))
    elif verb == "stop":
        name, seconds = words
        call("StopContainer", message((1, identity(name)), (2, int(seconds))))
    else:
        methods = {"start": "StartContainer", "rm": "RemoveContainer", "stop-pod": "StopPodSandbox", "rm-pod": "RemovePodSandbox"}
        call(methods[verb], message((1, identity(words[0]))))


main(*sys.argv[1:])
