package ledger_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/ledger"
)

// mutant is a log that somebody changed: what is read, and the checkpoint that comes with it.
type mutant struct {
	what   string
	export io.Reader
	signed []byte
}

func parts(list ...[]byte) io.Reader {
	r := make([]io.Reader, len(list))
	for i, b := range list {
		r[i] = bytes.NewReader(b)
	}
	return io.MultiReader(r...)
}

// remembering checks a signature once: the same earlier checkpoints come with each of the mutants.
type remembering struct {
	note.Verifier
	seen sync.Map
}

func (r *remembering) Verify(msg, sig []byte) bool {
	id := string(msg) + string(sig)
	if ok, known := r.seen.Load(id); known {
		return ok.(bool)
	}
	ok := r.Verifier.Verify(msg, sig)
	r.seen.Store(id, ok)
	return ok
}

// TestEveryMutationIsFound changes a log of 1,000 records at every position in every way. Whoever does it has write access to
// the export, and in a part of the cases the log's key too: then only the earlier checkpoints, which the verifier kept, tell.
func TestEveryMutationIsFound(t *testing.T) {
	t.Parallel()
	const n = 1000
	signer, key := keyPair(t, origin)
	keys := ledger.Keys{Log: []note.Verifier{&remembering{Verifier: key}}}
	lines := make([][]byte, n)
	starts := make([]int, n+1) // of each line in the export
	for i := range lines {
		lines[i] = lineOf(t, i, anEvent(i))
		starts[i+1] = starts[i] + len(lines[i]) + 1
	}
	export := join(lines)
	at := func(size int) []byte {
		return sign(t, signer, ledger.Checkpoint{Origin: origin, Size: int64(size), Root: treeOf(t, lines[:size])})
	}
	last := at(n)
	var earlier [][]byte
	for size := 40; size <= n; size += 40 { // one every minute, say
		earlier = append(earlier, at(size))
	}
	v := ledger.Verification{Keys: keys, Checkpoint: last, Earlier: earlier}
	rep, err := ledger.Verify(bytes.NewReader(export), v)
	require.NoError(t, err, "the log itself verifies")
	require.Equal(t, ledger.Report{Checkpoint: rep.Checkpoint, Records: n, Earlier: len(earlier)}, rep)

	// resigned is what who holds the key makes of changed lines from position i on: positions renumbered, all hashed and
	// signed again. To hash 1,000 lines for each of 1,000 mutants is not needed: the tree up to i is the old one, and the verifier
	// stops at the first earlier checkpoint behind i.
	resigned := func(i int, changed ...apitoken.Event) (io.Reader, []byte) {
		end := min(i+100, n)
		var tail [][]byte
		for k, e := range changed {
			tail = append(tail, lineOf(t, i+k, e))
		}
		for p := i + len(changed); p < end; p++ {
			tail = append(tail, lineOf(t, p, anEvent(p+7))) // what follows moves up
		}
		all := append(append([][]byte(nil), lines[:i]...), tail...)
		fake := sign(t, signer, ledger.Checkpoint{Origin: origin, Size: int64(n), Root: treeOf(t, all[i:])})
		return parts(export[:starts[i]], join(tail)), fake
	}
	strange := anEvent(5000)
	mutants := func(i int) []mutant {
		a, b, c := export[:starts[i]], export[starts[i]:starts[i+1]], export[starts[i+1]:]
		edited := bytes.Replace(b, []byte("orders:read"), []byte("orders:rite"), 1)
		respelled := bytes.Replace(b, []byte(`"ok":true`), []byte(`"ok": true`), 1)
		flipped := bytes.Clone(b)
		flipped[i%(len(b)-1)] ^= 1 << (i % 7)
		out := []mutant{
			{"edit a scope", parts(a, edited, c), last},
			{"flip a bit", parts(a, flipped, c), last},
			{"delete", parts(a, c), last},
			{"insert before", parts(a, append(lineOf(t, i, strange), '\n'), b, c), last},
			{"duplicate", parts(a, b, b, c), last},
			{"truncate at the boundary", parts(a), last},
			{"truncate inside", parts(a, b[:len(b)/2]), last},
		}
		if i%2 == 0 {
			out = append(out, mutant{"encode it another way", parts(a, respelled, c), last},
				mutant{"truncate the newline", parts(a, b[:len(b)-1]), last},
				mutant{"replace the rest by a line", parts(a, b[:len(b)/2], []byte("\n")), last})
		}
		if i+1 < n {
			next := export[starts[i+1]:starts[i+2]]
			rest := export[starts[i+2]:]
			out = append(out, mutant{"swap", parts(a, next, b, rest), last})
			if i%2 == 1 {
				out = append(out, mutant{"swap and renumber", parts(a, append(lineOf(t, i, anEvent(i+1)), '\n'), append(lineOf(t, i+1, anEvent(i)), '\n'), rest), last})
			}
		}
		if far := i + n/2; far < n {
			lo, hi := i, far
			out = append(out, mutant{"swap far", parts(export[:starts[lo]], export[starts[hi]:starts[hi+1]], export[starts[lo+1]:starts[hi]],
				export[starts[lo]:starts[lo+1]], export[starts[hi+1]:]), last})
		}
		if i == n-1 {
			out = append(out, mutant{"append", parts(export, append(lineOf(t, n, strange), '\n')), last})
		}
		if i%10 == 0 { // what needs the key is dear to make
			e := anEvent(i)
			e.Subject = "somebody-else"
			x, signed := resigned(i, e)
			out = append(out, mutant{"edit and sign again", x, signed})
			x, signed = resigned(i)
			out = append(out, mutant{"remove seven and sign again", x, signed})
			x, signed = resigned(i, strange, anEvent(i))
			out = append(out, mutant{"insert and sign again", x, signed})
			out = append(out, mutant{"roll back to an older valid log", parts(a), at(i)})
			x, signed = parts(export), sign(t, signer, ledger.Checkpoint{Origin: origin, Size: n, Root: treeOf(t, lines[:i])})
			out = append(out, mutant{"another root under the same size", x, signed})
		}
		return out
	}

	var count, missed atomic.Int64
	var wg sync.WaitGroup
	next := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				for _, m := range mutants(i) {
					v := v
					v.Checkpoint = m.signed
					_, err := ledger.Verify(m.export, v)
					count.Add(1)
					if !errors.Is(err, ledger.ErrTampered) && !(i == n-1 && errors.Is(err, ledger.ErrUnsealed)) {
						if missed.Add(1) < 10 {
							t.Errorf("%s at %d was not found: %v", m.what, i, err)
						}
					}
				}
			}
		})
	}
	for i := range n {
		if !underRace || i%20 == 0 || i == n-1 {
			next <- i
		}
	}
	close(next)
	wg.Wait()
	require.Zero(t, missed.Load())
	if !underRace {
		require.GreaterOrEqual(t, count.Load(), int64(10_000))
	}
	t.Logf("%d mutations, every one found", count.Load())
}

func TestWhatWasFoundIsNamed(t *testing.T) {
	t.Parallel()
	signer, key := keyPair(t, origin)
	other, otherKey := keyPair(t, origin)
	_, foreign := keyPair(t, "elsewhere.example.com/audit")
	var lines [][]byte
	for i := range 20 {
		lines = append(lines, lineOf(t, i, anEvent(i)))
	}
	at := func(s note.Signer, n int) []byte {
		return sign(t, s, ledger.Checkpoint{Origin: origin, Size: int64(n), Root: treeOf(t, lines[:n])})
	}
	wrongRoot := sign(t, signer, ledger.Checkpoint{Origin: origin, Size: 10, Root: treeOf(t, lines[:9])})
	keys := ledger.Keys{Log: []note.Verifier{key}}
	all, last := join(lines), at(signer, 20)
	edited := bytes.Replace(all, []byte("user-13"), []byte("user-31"), 1)
	for _, c := range []struct {
		what   string
		export []byte
		v      ledger.Verification
		want   error
		text   string
	}{
		{"as it is", all, ledger.Verification{Keys: keys, Checkpoint: last}, nil, ""},
		{"as it is, with all it was", all, ledger.Verification{Keys: keys, Checkpoint: last, Earlier: [][]byte{at(signer, 0), at(signer, 1), at(signer, 19), last}}, nil, ""},
		{"an empty log", nil, ledger.Verification{Keys: keys, Checkpoint: at(signer, 0)}, nil, ""},
		{"an edit", edited, ledger.Verification{Keys: keys, Checkpoint: last, Earlier: [][]byte{at(signer, 10), at(signer, 15)}}, ledger.ErrAltered, "among records 10 to 14"},
		{"the end is gone", join(lines[:17]), ledger.Verification{Keys: keys, Checkpoint: last}, ledger.ErrTruncated, "among records 17 to 19"},
		{"all is gone", nil, ledger.Verification{Keys: keys, Checkpoint: last}, ledger.ErrTruncated, "among records 0 to 19"},
		{"an older log", join(lines[:10]), ledger.Verification{Keys: keys, Checkpoint: at(signer, 10), Earlier: [][]byte{last}}, ledger.ErrRolledBack, "had 20"},
		{"two stories", all, ledger.Verification{Keys: keys, Checkpoint: last, Earlier: [][]byte{at(signer, 10), wrongRoot}}, ledger.ErrSplitView, "10 records"},
		{"another key", all, ledger.Verification{Keys: keys, Checkpoint: at(other, 20)}, ledger.ErrSignature, "signature"},
		{"another key, which is a witness's", all, ledger.Verification{Keys: ledger.Keys{Log: keys.Log, Witnesses: []note.Verifier{otherKey}}, Checkpoint: at(other, 20)}, ledger.ErrSignature, "not signed by the log's key"},
		{"a witness is missing", all, ledger.Verification{Keys: ledger.Keys{Log: keys.Log, Witnesses: []note.Verifier{otherKey}, Quorum: 1}, Checkpoint: last}, ledger.ErrSignature, "0 witnesses"},
		{"an old key and a new one", all, ledger.Verification{Keys: ledger.Keys{Log: []note.Verifier{key, otherKey}}, Checkpoint: at(other, 20), Earlier: [][]byte{at(signer, 10)}}, nil, ""},
		{"more than is sealed", all, ledger.Verification{Keys: keys, Checkpoint: at(signer, 18)}, ledger.ErrUnsealed, "2 records"},
		{"more than is sealed, allowed", all, ledger.Verification{Keys: keys, Checkpoint: at(signer, 18), AllowUnsealed: true}, nil, ""},
		{"a torn record behind", append(join(lines), lines[3][:40]...), ledger.Verification{Keys: keys, Checkpoint: last}, ledger.ErrUnsealed, "40 bytes of an incomplete one"},
		{"a line without end behind it", append(join(lines), bytes.Repeat([]byte("x"), ledger.MaxLeafBytes+1)...), ledger.Verification{Keys: keys, Checkpoint: last}, ledger.ErrUnsealed, "record 20 is over"},
		{"what begins like a part behind it", append(join(lines), "{\"apitoken_ledger\":1}\n"...), ledger.Verification{Keys: keys, Checkpoint: last}, ledger.ErrUnsealed, "first line"},
		{"a line without end", append(join(lines[:5]), bytes.Repeat([]byte("x"), ledger.MaxLeafBytes+1)...), ledger.Verification{Keys: keys, Checkpoint: last}, ledger.ErrAltered, "record 5 is over"},
	} {
		_, err := ledger.Verify(bytes.NewReader(c.export), c.v)
		if c.want == nil {
			require.NoError(t, err, c.what)
			continue
		}
		require.ErrorIs(t, err, c.want, c.what)
		require.ErrorContains(t, err, c.text, c.what)
		require.Equal(t, c.want != ledger.ErrUnsealed, errors.Is(err, ledger.ErrTampered), "%s: what a crash leaves is no tampering, and the rest is", c.what)
	}
	// An earlier checkpoint of somebody else's is no verdict, and hides none.
	strange := ledger.Verification{Keys: keys, Checkpoint: last, Earlier: [][]byte{at(other, 10), []byte("nothing"), at(signer, 10)}}
	_, err := ledger.Verify(bytes.NewReader(all), strange)
	require.ErrorContains(t, err, "earlier checkpoint 1 proves nothing")
	require.NotErrorIs(t, err, ledger.ErrTampered)
	_, err = ledger.Verify(bytes.NewReader(edited), strange)
	require.ErrorIs(t, err, ledger.ErrAltered)
	for _, bad := range []ledger.Keys{{}, {Log: []note.Verifier{nil}}, {Log: []note.Verifier{key, foreign}}, {Log: []note.Verifier{key, key}}, {Log: []note.Verifier{key}, Quorum: 1}} {
		_, err := ledger.Verify(bytes.NewReader(all), ledger.Verification{Keys: bad, Checkpoint: last})
		require.Error(t, err)
		require.NotErrorIs(t, err, ledger.ErrTampered, "keys that prove nothing are no verdict about the log")
	}
	_, err = ledger.Verify(io.MultiReader(bytes.NewReader(all[:100]), failing{}), ledger.Verification{Keys: keys, Checkpoint: last})
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.NotErrorIs(t, err, ledger.ErrTampered, "a file that does not read is no verdict about the log")
}

// TestPartsBehindTheCheckpoint: an archive and what follows it, read with a checkpoint that lies within the archive.
func TestPartsBehindTheCheckpoint(t *testing.T) {
	t.Parallel()
	l := open(t, ledgerPath(t), nil)
	f := &feed{}
	f.add(10)
	require.NoError(t, l.Follow(f))
	early := seal(t, l)
	f.add(20)
	seal(t, l)
	v := ledger.Verification{Keys: l.keys, Checkpoint: early, AllowUnsealed: true}
	rep, err := ledger.Verify(io.MultiReader(bytes.NewReader(exported(t, l, 0, 20)), bytes.NewReader(exported(t, l, 20, -1))), v)
	require.NoError(t, err)
	require.Equal(t, int64(10), rep.Records)
	require.Equal(t, int64(20), rep.Unsealed)
	_, err = ledger.Verify(io.MultiReader(bytes.NewReader(exported(t, l, 0, 20)), bytes.NewReader(exported(t, l, 21, -1))), v)
	require.ErrorIs(t, err, ledger.ErrUnsealed, "a part that is missing there, nothing proves or disproves")
	require.NotErrorIs(t, err, ledger.ErrTampered)
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestCheckpointsAreStrict(t *testing.T) {
	t.Parallel()
	signer, key := keyPair(t, origin)
	keys := ledger.Keys{Log: []note.Verifier{key}}
	root := treeOf(t, [][]byte{[]byte("x")})
	for _, text := range []string{
		"", "\n", origin + "\n1\n", origin + "\n01\n" + root.String() + "\n", origin + "\n+1\n" + root.String() + "\n", origin + "\n-1\n" + root.String() + "\n",
		origin + "\n1\nAAAA\n", origin + "\n0\n" + root.String() + "\n", "other\n1\n" + root.String() + "\n", origin + "\n9223372036854775808\n" + root.String() + "\n",
	} {
		signed, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			continue
		}
		_, err = keys.Open(signed)
		require.ErrorIs(t, err, ledger.ErrSignature, "%q", text)
	}
	signed, err := note.Sign(&note.Note{Text: origin + "\n1\n" + root.String() + "\nan extension\n"}, signer)
	require.NoError(t, err)
	c, err := keys.Open(signed)
	require.NoError(t, err)
	require.Equal(t, ledger.Checkpoint{Origin: origin, Size: 1, Root: root}, c)
}

func TestSplitCheckpoints(t *testing.T) {
	t.Parallel()
	signer, _ := keyPair(t, origin)
	var file []byte
	var want [][]byte
	for i := range 3 {
		s := sign(t, signer, ledger.Checkpoint{Origin: origin, Size: int64(i + 1), Root: treeOf(t, [][]byte{{byte(i)}})})
		want, file = append(want, s), append(file, s...)
	}
	got, err := ledger.SplitCheckpoints(file)
	require.NoError(t, err)
	require.Equal(t, want, got)
	for cut := 1; cut < len(want[2]); cut++ {
		_, err := ledger.SplitCheckpoints(file[:len(file)-cut])
		if err == nil {
			require.Equal(t, len(want[2])-1, cut, "a file that is cut off does not read")
		}
	}
	got, err = ledger.SplitCheckpoints(nil)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestCosignerKeys(t *testing.T) {
	t.Parallel()
	pub, priv, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	at := time.Unix(1_700_000_000, 0)
	s, err := ledger.NewCosigner("witness.example.org", priv, func() time.Time { return at })
	require.NoError(t, err)
	text := ledger.CosignerKey("witness.example.org", pub)
	v, err := ledger.ParseKey(text + "\n")
	require.NoError(t, err)
	require.Equal(t, s.Name(), v.Name())
	require.Equal(t, s.KeyHash(), v.KeyHash())
	sig, err := s.Sign([]byte("text\n"))
	require.NoError(t, err)
	require.True(t, v.Verify([]byte("text\n"), sig))
	require.False(t, v.Verify([]byte("text\n"), sig[:70]))
	sig[3] ^= 1
	require.False(t, v.Verify([]byte("text\n"), sig), "the time is signed too")
	for _, bad := range []string{"", "a+b", strings.Replace(text, "witness.", "wetness.", 1), strings.Replace(text, "+", "+0", 1), "w+00000000+CQ==", text[:len(text)-4]} {
		_, err := ledger.ParseKey(bad)
		require.Error(t, err, "%q", bad)
	}
	for _, name := range []string{"", "a b", "a+b"} {
		_, err = ledger.NewCosigner(name, priv, nil)
		require.Error(t, err)
	}
	_, err = ledger.NewCosigner("a", priv[:12], nil)
	require.Error(t, err)
	require.NotEmpty(t, fmt.Sprint(s.Name()))
}
