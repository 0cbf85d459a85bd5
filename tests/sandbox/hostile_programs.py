"""Forty programs that try to harm the machine, or to pass without doing anything.

`{canary}` is a file that everybody may write, `{port}` one that listens on this machine, `{pid}`
the process of the test.
"""

HOSTILE = {
    # time
    "endless loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "endless loop that catches all": "while True:\n    try: pass\n    except BaseException: pass",
    "deaf to signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "endless regular expression": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "huge power": "x = 9 ** 9 ** 9",
    "waits for input": "import sys\nassert sys.stdin.read(1)",
    # memory
    "ten gigabytes": "x = bytearray(10 << 30)",
    "a list without end": "x = []\nwhile True: x.append(' ' * 10**6)",
    "a string that doubles": "x = 'a'\nwhile True: x += x",
    "recursion": "def f(): return f()\nf()",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
    "anonymous maps": "import mmap\nx = [mmap.mmap(-1, 1 << 28) for _ in range(100)]",
    # processes
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that waits": (
        "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(1)"
    ),
    "threads without end": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()"
    ),
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(60)\n        open('{canary}', 'w').write('daemon')\n    os._exit(0)\n"
        "os.wait()\nos._exit(0)"
    ),
    "a daemon that fails its parent": (
        "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nassert False"
    ),
    "a shell": "import os\nassert os.system('sleep 60 & echo x > {canary}') == 0",
    "a subprocess": "import subprocess\nsubprocess.run(['touch', '{canary}.made'], check=True)",
    # signals
    "kills the parent": "import os\nos.kill(os.getppid(), 9)\nwhile True: pass",
    "kills the test": "import os\nos.kill({pid}, 15)",
    "kills everybody": "import os\nos.kill(-1, 9)\nassert False",
    "kills its group": "import os\nos.killpg(0, 9)",
    "kills itself": "import os\nos.kill(os.getpid(), 9)\nwhile True: pass",
    "crashes": "import ctypes\nctypes.string_at(0)",
    # files
    "writes outside": "open('{canary}', 'w').write('written')",
    "writes into the system": "open('/usr/lib/hfstack-canary', 'w').write('x')",
    "deletes outside": "import os\nos.remove('{canary}')",
    "reads passwords": "assert open('/etc/passwd').read()",
    "a link to the outside": (
        "import os\nos.symlink('{canary}', 'link')\nopen('link', 'w').write('linked')\nassert False"
    ),
    "climbs out": "open('../' * 40 + '{canary}', 'w').write('climbed')",
    "leaves its root": "import os\nos.mkdir('x')\nos.chroot('x')\nos.chdir('../' * 40)",
    "a huge file": "f = open('x', 'wb')\nwhile True: f.write(b'x' * 10**6)",
    "many files": "for n in range(10**6): open(str(n), 'w').write('x' * 1000)",
    "many open files": "x = [open('x', 'w') for _ in range(1000)]",
    "mounts": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, b'') == 0"
    ),
    "other namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10020000) == 0",
    # output
    "output without end": "while True: print('x' * 10**6)",
    # network
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
    "names of the internet": "import socket\nsocket.getaddrinfo('example.org', 80)",
    # passing without the tests
    "exits": "raise SystemExit(0)",
    "exits at once": "import os\nos._exit(0)",
    "replaces itself": "import os\nos.execv('/bin/true', ['true'])",
    "says that it has passed": (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'passed')\n"
        "    except OSError: pass"
    ),
    "closes the report": "import os\nos.closerange(0, 64)",
}
