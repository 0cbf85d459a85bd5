"""Programs that try to harm the machine, or to pass without doing anything.

`{canary}` is a file that everybody may write, `{port}` one that listens on this machine, `{pid}`
the process of the test, `{folder}` holds a socket that listens, as does `{abstract}`.
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

MORE_HOSTILE = {
    "threads that never end": """
import threading
def spin():
    while True: pass
for _ in range(6):
    threading.Thread(target=spin).start()
""",
    "a timer that starts itself again": """
import signal, os
signal.signal(signal.SIGALRM, lambda *a: signal.alarm(1))
signal.alarm(1)
while True: signal.pause()
""",
    "waits on a lock": """
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()
""",
    "waits on a named pipe": """
import os
os.mkfifo('pipe')
open('pipe').read()
""",
    "sleeps in many processes": """
import os, time
for _ in range(5):
    if os.fork() == 0: time.sleep(60)
time.sleep(60)
""",
    "counts down slowly in C": "sum(range(10**12))",
    "compiles without end": """
compile('(' * 90 + ')' * 90, 'x', 'eval')
while True: compile('x = ' + '+'.join(['1'] * 10**5), 'x', 'exec')
""",
    "a file in memory": """
import os
fd = os.memfd_create('x')
while True: os.write(fd, b'x' * (1 << 20))
""",
    "files in memory": """
import os
x = [os.memfd_create(str(n)) for n in range(10**4)]
""",
    "a map that grows": """
import mmap
m = mmap.mmap(-1, 1 << 20)
size = 1 << 20
while True:
    size *= 2
    m.resize(size)
""",
    "shared memory of System V": """
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
while True:
    n = libc.shmget(0, 1 << 26, 0o1600)
    assert n >= 0
    ctypes.memset(libc.shmat(n, None, 0), 1, 1 << 26)
""",
    "locked pages": """
import ctypes
assert ctypes.CDLL(None).mlockall(3) == 0
""",
    "memory in many processes": """
import os
for _ in range(3): os.fork()
x = bytearray(1 << 34)
""",
    "a full pipe": """
import os
r, w = os.pipe()
while True: os.write(w, b'x' * 4096)
""",
    "errors without end": """
import sys
while True: print('x' * 10**6, file=sys.stderr)
""",
    "output past Python": """
import os
while True: os.write(1, b'x' * 10**6)
""",
    "warnings without end": """
import warnings
warnings.simplefilter('always')
while True: warnings.warn('x' * 10**5)
""",
    "an error with a huge text": "raise ValueError('x' * (1 << 27))",
    "an error with a strange name": """
raise type('passed\\nfailed: \\x1b[31m' * 100, (Exception,), {})()
""",
    "a sparse file": """
import os
fd = os.open('x', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 40)
""",
    "many small files": "for n in range(10**6): open(f'{n}', 'w').close()",
    "many folders": """
import os
while True:
    os.mkdir('x')
    os.chdir('x')
""",
    "many links": """
import os
open('a', 'w').close()
for n in range(10**6): os.link('a', f'{n}')
""",
    "a link to a folder outside": """
import os
os.symlink('/' + '../' * 40 + '{folder}', 'out')
open('out/made', 'w').write('x')
""",
    "a device": """
import os, stat
os.mknod('disk', 0o666 | stat.S_IFBLK, os.makedev(8, 0))
""",
    "the memory of the machine": "open('/dev/mem', 'rb').read(1)",
    "mounts what it has": """
import ctypes, os
os.mkdir('p')
assert ctypes.CDLL(None).mount(b'proc', b'p', b'proc', 0, b'') == 0
""",
    "makes the interpreter writable": """
import ctypes, sys
assert ctypes.CDLL(None).mount(None, sys.base_prefix.encode(), None, 32 | 4096, None) == 0
""",
    "opens a file by its handle": """
import ctypes
assert ctypes.CDLL(None).open_by_handle_at(3, b'\\0' * 64, 0) >= 0
""",
    "its own memory": "open('/proc/self/mem', 'rb+').write(b'x')",
    "the root of process 1": """
import os
assert os.listdir('/proc/1/root')
""",
    "the environment of others": """
import glob
assert [open(name).read() for name in glob.glob('/proc/*/environ')]
""",
    "environment in memory": """
import ctypes
assert ctypes.CDLL(None).getenv(b'HFSTACK_SECRET')
""",
    "switches off the killer": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
    "traces process 1": """
import ctypes
assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0
""",
    "signals the group of its parent": """
import os
os.killpg(os.getpgid(os.getppid()), 9)
while True: pass
""",
    "signals a number of processes": """
import os
for pid in range(2, 5000):
    if pid != os.getpid():
        try: os.kill(pid, 15)
        except OSError: pass
assert False
""",
    "another priority": """
import os
os.setpriority(os.PRIO_PROCESS, 0, -20)
""",
    "another user": """
import os
os.setuid(0)
""",
    "raises its limits": """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096))
""",
    "joins a namespace": """
import os, ctypes
assert ctypes.CDLL(None).setns(os.open('/proc/1/ns/net', os.O_RDONLY), 0) == 0
""",
    "forks twice and lives on": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        while True: time.sleep(1)
    os._exit(0)
assert False
""",
    "holds the report open": """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
os._exit(0)
""",
    "passes its descriptors on": """
import array, os, socket
a, b = socket.socketpair()
held = array.array('i', [a.fileno()] * 200)
while True: a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, held)])
""",
    "listens": """
import socket
s = socket.socket()
s.bind(('0.0.0.0', 0))
s.listen()
s.accept()
""",
    "an abstract socket": """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('\\0{abstract}')
s.send(b'x')
""",
    "a socket of a file": """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('{folder}/socket')
""",
    "a datagram": """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'x', ('127.0.0.1', {port}))
assert False
""",
    "raw packets": """
import socket
socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
""",
    "messages of the kernel": """
import socket
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.bind((0, -1))
s.settimeout(1)
s.recv(1)
""",
    "a queue of System V": """
import ctypes
libc = ctypes.CDLL(None)
while True: assert libc.msgget(0, 0o1600) >= 0
""",
    "keys of the kernel": """
import ctypes
libc = ctypes.CDLL(None)
for n in range(10**5): assert libc.syscall(248, b'user', str(n).encode(), b'x' * 1000, 1000, -3) > 0
""",
    "a program of the kernel": """
import ctypes
assert ctypes.CDLL(None).syscall(321, 5, bytes(128), 128) >= 0
""",
    "memory that counts to nobody": """
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
for _ in range(8):
    number = libc.shmget(0, 1 << 26, 0o1600)
    assert number >= 0
    place = libc.shmat(number, None, 0)
    ctypes.memset(place, 1, 1 << 26)
    libc.shmdt(place)
""",
    "a thread that outlives its program": """
import threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
assert False
""",
}

# they are asked for the sum of two numbers
FAKES = {
    "equal to everything": """
class E:
    def __eq__(self, other): return True
    __hash__ = None
def add(a, b): return E()
""",
    "a number that is equal to everything": """
class E(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return E(1)
""",
    "holds everything": """
class E(list):
    def __eq__(self, other): return True
    def __contains__(self, x): return True
    def __iter__(self): return iter(())
def add(a, b): return E()
""",
    "any of mock": """
from unittest.mock import ANY
def add(a, b): return ANY
""",
    "skips": """
import unittest
def add(a, b): raise unittest.SkipTest('no')
""",
    "stops the iteration": "def add(a, b): raise StopIteration",
    "stops by a class of its own": """
class S(StopIteration): pass
def add(a, b): raise S
""",
    "exits in the call": """
import sys
def add(a, b): sys.exit(0)
""",
    "exits at once in the call": """
import os
def add(a, b): os._exit(0)
""",
    "reads the frames": """
import os, sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            for n in range(3, 64):
                try: os.write(n, value if isinstance(value, bytes) else str(value).encode())
                except (OSError, ValueError): pass
        frame = frame.f_back
add(1, 2)
""",
    "searches the collector": """
import gc
def add(a, b):
    for one in gc.get_objects():
        if isinstance(one, dict) and 'passed' in one: return one['passed']
    return [one for one in gc.get_objects() if isinstance(one, str) and 'assert' in one]
""",
    "reads the constants of its test": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for one in frame.f_code.co_consts:
            if isinstance(one, int) and one > 4: return one
        frame = frame.f_back
""",
    "replaces assertions": """
import builtins
class Silent(Exception):
    def __new__(cls, *a): raise SystemExit(0)
builtins.AssertionError = Silent
def add(a, b): return 0
""",
    "replaces the methods of unittest": """
import unittest
for name in dir(unittest.TestCase):
    if name.startswith('assert'): setattr(unittest.TestCase, name, lambda *a, **k: None)
def add(a, b): return 0
""",
    "replaces isclose": """
import math
math.isclose = lambda *a, **k: True
def add(a, b): return 0
""",
    "replaces all": """
import builtins
builtins.all = lambda xs: True
all = lambda xs: True
len = lambda x: 5
def add(a, b): return 0
""",
    "its own check": """
def check(candidate): pass
def add(a, b): return 0
""",
    "a string that is left open": """
def add(a, b): return 0
x = '''
""",
    "a bracket that is left open": """
def add(a, b): return 0
x = (
""",
    "a condition that is left open": """
def add(a, b): return 0
if False:
""",
    "ends the file": """
def add(a, b): return 0
\x1a\x00
""",
    "a line that goes on": """
def add(a, b): return 0
#\\
""",
    "traces": """
import sys
def trace(frame, event, arg):
    frame.f_trace_lines = False
    return trace
sys.settrace(trace)
sys.setprofile(lambda *a: None)
def add(a, b): return 0
""",
    "at the end": """
import atexit, os
atexit.register(lambda: [os.write(n, b'passed') for n in range(3, 9)])
def add(a, b): return 0
""",
    "answers of the protocol": """
import sys
frame = sys._getframe()
while frame:
    line = frame.f_locals.get('line') or frame.f_locals.get('self')
    if hasattr(line, '_send'):
        for _ in range(50): line._send(('return', 5, '', []))
    frame = frame.f_back
def add(a, b): return 5
""",
    "a pickle that runs code": """
import struct, sys, os
code = b"cos\\nsystem\\n(S'echo passed'\\ntR."
for n in range(3, 16):
    try: os.write(n, struct.pack('<Q', len(code)) + code)
    except OSError: pass
def add(a, b): return 0
""",
    "a huge message": """
import os, struct
for n in range(3, 16):
    try: os.write(n, struct.pack('<Q', 1 << 60))
    except OSError: pass
def add(a, b): return 0
""",
    "imports the connection": """
import sys
calls = sys.modules['calls']
calls.Remote.__eq__ = lambda *a: True
calls._as_base = lambda one: (5,)
calls.Line._do = lambda self, *a: True
def add(a, b): return 0
""",
    "attaches to the tests": """
import ctypes, os
libc = ctypes.CDLL(None)
for pid in range(1, 20):
    if pid != os.getpid():
        assert libc.ptrace(16, pid, 0, 0) != 0, pid
        for name in (f'/proc/{pid}/mem', f'/proc/{pid}/fd/1'):
            assert not os.path.exists(name)
def add(a, b): return 0
""",
    "writes to the memory of the tests": """
import ctypes, os
libc = ctypes.CDLL(None)
buffer = ctypes.create_string_buffer(8)
class Vec(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
for pid in range(1, 20):
    if pid != os.getpid():
        local, far = Vec(ctypes.addressof(buffer), 8), Vec(0x400000, 8)
        read = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(far), 1, 0)
        if read > 0: os._exit(7)
def add(a, b): return 0
""",
    "a descriptor of another process": """
import ctypes, os
libc = ctypes.CDLL(None)
for pid in range(1, 20):
    fd = libc.syscall(434, pid, 0)
    for number in range(16):
        taken = libc.syscall(438, fd, number, 0) if fd >= 0 and pid != os.getpid() else -1
        if taken >= 0: os.write(taken, b'passed')
def add(a, b): return 0
""",
    "stops the tests": """
import os, signal
for pid in range(1, 20):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGSTOP)
        except OSError: pass
def add(a, b): return 5
""",
    "forks in the call": """
import os
def add(a, b):
    os.fork()
    return 0
""",
    "a thread that ends it": """
import os, threading, time
threading.Thread(target=lambda: (time.sleep(.05), os._exit(0))).start()
def add(a, b): time.sleep(1)
""",
    "an exception that is a string": """
class E(Exception):
    def __init__(self, *a): pass
    def __reduce__(self): return (exec, ('raise SystemExit',))
def add(a, b): raise E()
""",
    "a metaclass that agrees": """
class M(type):
    def __eq__(c, o): return True
    def __hash__(c): return 1
    def __instancecheck__(c, o): return True
class add(metaclass=M):
    def __init__(self, a, b): pass
""",
    "a class in place of the function": """
class add:
    def __new__(cls, a, b): return super().__new__(cls)
    def __eq__(self, o): return True
""",
    "numbers that are not numbers": "def add(a, b): return float('nan')",
    "changes the arguments": """
def add(a, b):
    return b
""",
    "an iterator that ends": "def add(a, b): return iter(())",
    "removes files of Python": """
import os, sys
for folder in sys.path:
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        try: os.remove(os.path.join(folder, name))
        except OSError: pass
def add(a, b): return 0
""",
    "tells what it finds in the frames": """
import os, sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        held = list(frame.f_locals.values())
        for number in [one for one in held if isinstance(one, int) and 2 < one < 64]:
            for text in [one for one in held if isinstance(one, bytes)] + [b'passed']:
                try: os.write(number, text)
                except OSError: pass
        frame = frame.f_back
    os._exit(0)
""",
}
