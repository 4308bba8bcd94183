"""`<lora:name:1>` in prompts. `loaded` is what is at work."""

import re

re_extra_net = re.compile(r"<(\w+):([^>]+)>")
loaded = {}


def parse_prompts(prompts):
    data = {}
    for kind, args in re_extra_net.findall(prompts[0]):
        data.setdefault(kind, []).append(args.split(":"))
    return [re_extra_net.sub("", prompt) for prompt in prompts], data


def activate(p, extra_network_data):
    loaded.clear()
    loaded.update(extra_network_data)
    p.extra_generation_params["Lora hashes"] = "x"


def deactivate(p, extra_network_data):
    pass
