import sys, tempfile, traceback, os
sys.path[:0]=['/tmp/hC','/tmp/hC/benchmarks']
import torch; torch.set_num_threads(1)
from pathlib import Path
from fuzzing import *
from fuzz_kinds import *
from fuzz_kinds import _checked,_overridden,_corpus,_damage,_shown,_resumed,_served,_stdin,_partner
d=tempfile.mkdtemp(); os.chdir(d); b=Bench(Path(d))
def t(name,f,*a):
    try: f(*a); print('ok  ',name)
    except BaseException as e:
        print('FAIL',name,type(e).__name__,str(e)[:200]); 
        tb=traceback.extract_tb(e.__traceback__)[-1]; print('      ',tb.filename,tb.lineno)
big=b'0x'+b'f'*5000
for key in ('train: {precision: %s}','seed: %s','model: {norm: %s}','run_dir: %s','data: {train: [%s]}','data: {max_ratio: %s}','extends: %s','x: %s','train: {lr: %s}','train: {betas: [%s, 1]}','data: {test: {a: %s}}','decode: %s', 'model: {placement: {encoder: %s}}'):
    t(key, _checked, b, key.encode()%big)
    t(key+' nul', _checked, b, key.encode()%b'"a\\0b"')
    t(key+' surrogate', _checked, b, key.encode()%b'"\\ud800"')
t('overr', _overridden, b, ['train.precision='+big.decode()])
def prep(extra):
    f=b.file('p.yaml',(f"data: {{train: {d}/train, valid: {d}/valid, {extra}, tokenizer: {{vocab_size: 40, type: char}}}}").encode())
    require(call(data,[f]),[0,1,2])
for x in ('cache: "a\\0b"','cache: "\\ud800"','cache: c, test: {a: "\\0"}','cache: c, test: {a: "\\ud800"}','cache: c, source: "\\0"','cache: "%s"'%('x'*5000), 'cache: /dev/null', 'cache: c, test: {a: "/dev/zero"}'):
    t('prep '+x[:40], prep, x)
def tokp(x):
    f=b.file('p.yaml',(f"data: {{train: {d}/train, valid: {d}/valid, cache: {d}/c, tokenizer: {{path: {x}}}}}").encode())
    require(call(data,[f]),[0,1,2])
for x in ('"a\\0"','"\\ud800"','/dev/null','/dev', d+'/run'): t('tokpath '+x, tokp, x)
for j in JSON:
    t('result '+repr(j[:12]), _shown, b, j)
    t('manifest '+repr(j[:12]), _served, b, ('export.json', j))
for m in MANIFESTS[:1]: t('manifest climbs', _served, b, ('export.json', m))
for j in JSON[-2:]:
    t('stamp', _resumed, b, ('tokenizer/trained_from.json', j))
    t('metrics', _resumed, b, ('metrics.jsonl', j+b"\n"))
    t('data.json', _resumed, b, ('data.json', j))
    t('result', _resumed, b, ('result.json', j))
w=b.kept[b.run/'model.safetensors']
import struct, json
n=struct.unpack('<Q',w[:8])[0]; head=json.loads(w[8:8+n])
def reh(f):
    h=json.loads(json.dumps(head)); f(h); s=json.dumps(h).encode(); return struct.pack('<Q',len(s))+s+w[8+n:]
for nm,f in {'tied deep': lambda h: h['__metadata__'].update(tied='['*100000), 'tied self': lambda h: h['__metadata__'].update(tied='{"a": ["x"]}'), 'tied list': lambda h: h['__metadata__'].update(tied='[1]'), 'tied int': lambda h: h['__metadata__'].update(tied='1'*5000)}.items():
    t('weights '+nm, _damage('model.safetensors'), b, reh(f))
tok=b.kept[b.run/'tokenizer/joint.model']
def damj(content):
    with b.damaged(b.run/'tokenizer/joint.model', content):
        require(call(translate,[str(b.run),'--json'],SHORT*3),[0,1],9)
i=tok.index(b'\x0a',60)
for word in (b'e',b'o',b'\xe2\x96\x81'):
    for bad in (b'\xff',b'\x00',b'\xc3'):
        k=tok.index(b'\x0a'+bytes([len(word)])+word); c=tok[:k+2]+bad*len(word)+tok[k+2+len(word):]
        t('tok piece %r->%r'%(word,bad), damj, c)
def cfg(text):
    with b.damaged(b.run/'config.yaml', b.kept[b.run/'config.yaml'].replace(*text)):
        require(call(translate,[str(b.run)],SHORT),[0,1,2],3)
for a,c in ((b'd_model: 8',b'd_model: 1000000000'),(b'd_ff: 8',b'd_ff: 100000000000'),(b'd_model: 8',b'd_model: 9000000000000000000'),(b'heads: 2',b'heads: 3'),(b'max_length: 64',b'max_length: 1000000000000'),):
    t(c.decode(), cfg, (a,c))
