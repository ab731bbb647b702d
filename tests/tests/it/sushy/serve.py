"""serve.py FOLDER: the Redfish service of sushy-tools, whose systems FOLDER/systems.json names, on a free port of loopback.

Its driver "fake" draws how long a change of power takes; here it takes a second or two, so that no test waits for chance.
Ends when its standard input ends: with whoever started it.
"""

import json
import os
import random
import sys
import threading

import bcrypt
from sushy_tools.emulator import main

folder = sys.argv[1]


def end_with_parent():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_parent, daemon=True).start()
random.randint = lambda low, high: 2
password = bcrypt.hashpw(b"sushy-only", bcrypt.gensalt(4)).decode()
with open(folder + "/users", "w") as users:
    users.write("defib:" + password + "\n")
with open(folder + "/systems.json") as systems:
    config = {"SUSHY_EMULATOR_FAKE_SYSTEMS": json.load(systems)}
config["SUSHY_EMULATOR_AUTH_FILE"] = folder + "/users"
config["SUSHY_EMULATOR_STATE_DIR"] = folder
config["SUSHY_EMULATOR_LISTEN_IP"] = "127.0.0.1"
config["SUSHY_EMULATOR_LISTEN_PORT"] = 0
with open(folder + "/config.py", "w") as file:
    file.writelines(f"{name} = {value!r}\n" for name, value in config.items())
certificate = ["--ssl-certificate", folder + "/certificate.pem", "--ssl-key", folder + "/key.pem"]
sys.argv = ["sushy-emulator", "--fake", "--config", folder + "/config.py", *certificate]
sys.exit(main.main())
