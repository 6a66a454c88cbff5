package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/ledger"
)

func TestServiceLogIsSealedAndVerifies(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := open(t, ledgerPath(t), nil)
	svc := service(t, nil)
	require.NoError(t, l.Follow(svc))
	require.Error(t, l.Follow(svc), "a ledger follows one feed")

	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(t, err)
	early := seal(t, l)
	for range 300 {
		_, err := svc.Issue(ctx, apitoken.Request{Subject: "bob"})
		require.NoError(t, err)
	}
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left the company"))
	last := seal(t, l)

	rep, err := verify(l, exported(t, l, 0, -1), last, early)
	require.NoError(t, err)
	require.Equal(t, 1, rep.Earlier)
	require.GreaterOrEqual(t, rep.Records, int64(302))

	// Every event of the store is in the log, once, in its order.
	var want, got []string
	for e, err := range svc.Events(ctx, apitoken.EventQuery{OldestFirst: true}) {
		require.NoError(t, err)
		want = append(want, e.ID)
	}
	require.NoError(t, l.Leaves(ctx, 0, -1, func(x ledger.Leaf) error {
		require.Equal(t, int64(len(got)), x.Pos)
		got = append(got, x.Event.ID)
		return nil
	}))
	require.Equal(t, want, got)

	// Inclusion of each kind of event, proved with the checkpoint alone.
	for _, e := range []string{want[0], want[len(want)/2], want[len(want)-1]} {
		p, signed, err := l.ProveInclusion(ctx, e)
		require.NoError(t, err)
		text, err := json.Marshal(p)
		require.NoError(t, err)
		var back ledger.InclusionProof
		require.NoError(t, json.Unmarshal(text, &back), "proofs travel as JSON")
		leaf, err := back.Check(signed, l.keys)
		require.NoError(t, err)
		require.Equal(t, e, leaf.Event.ID)
		back.Line = string(bytes.Replace([]byte(back.Line), []byte(`"ok":true`), []byte(`"ok":false`), 1))
		_, err = back.Check(signed, l.keys)
		require.ErrorIs(t, err, ledger.ErrTampered)
	}
	_, _, err = l.ProveInclusion(ctx, "01nobody")
	require.ErrorIs(t, err, apitoken.ErrNotFound)

	c, err := l.keys.Open(early)
	require.NoError(t, err)
	n, err := l.keys.Open(last)
	require.NoError(t, err)
	proof, err := l.ProveConsistency(ctx, c.Size, n.Size)
	require.NoError(t, err)
	require.NoError(t, proof.Check(early, last, l.keys))
	proof.Hashes[0][0] ^= 1
	require.ErrorIs(t, proof.Check(early, last, l.keys), ledger.ErrTampered)
	require.NotEmpty(t, i.Access.Reveal())
}

func TestGoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	f := &feed{}
	f.add(1)
	l := open(t, ledgerPath(t), nil)
	require.NoError(t, l.Follow(f))
	first := seal(t, l)
	for _, n := range []int{1, 2, 199, 1500, 1} {
		f.add(n)
		l = l.reopen(t, nil)
		require.NoError(t, l.Follow(f))
		last := seal(t, l)
		rep, err := verify(l, exported(t, l, 0, -1), last, first)
		require.NoError(t, err)
		require.Equal(t, int64(len(f.events)), rep.Records, "no gap, no duplicate, however the feed was cut into pages")
	}
}

func TestFeedThatStartsAgainAddsNothing(t *testing.T) {
	t.Parallel()
	f := &feed{}
	f.add(500)
	l := open(t, ledgerPath(t), nil)
	for _, e := range f.events[:10] {
		require.NoError(t, l.Audit(context.Background(), e), "without Follow the ledger takes events one by one")
	}
	require.NoError(t, l.Audit(context.Background(), f.events[3]), "an event that comes again")
	require.Equal(t, int64(10), l.Status().Size)
	l = l.reopen(t, nil) // what it remembers in memory is gone
	require.NoError(t, l.Audit(context.Background(), f.events[3]))
	require.Equal(t, int64(10), l.Status().Size)
	require.NoError(t, l.Follow(f))
	seal(t, l)
	require.Equal(t, int64(500), l.Status().Size)
}

// TestEventsOfParallelCallers: their IDs are not in the order of the feed.
func TestEventsOfParallelCallers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := &feed{}
	l := open(t, ledgerPath(t), nil)
	require.NoError(t, l.Follow(f))
	for range 3 {
		f.change(func(f *feed) {
			for range 3000 {
				f.events = append(f.events, anEvent(len(f.events)))
			}
			for i := len(f.events) - 3000; i < len(f.events); i += 10 {
				f.events[i], f.events[i+9] = f.events[i+9], f.events[i]
			}
		})
		seal(t, l)
	}
	for range 2 {
		require.Equal(t, int64(9000), l.Status().Size)
		for i := 0; i < 9000; i += 601 {
			require.NoError(t, l.Audit(ctx, f.events[i]), "known, whether remembered or found")
		}
		require.NoError(t, l.CheckSource(ctx, f))
		l = l.reopen(t, nil)
		require.NoError(t, l.Follow(f))
	}
}

func TestGapIsRecorded(t *testing.T) {
	t.Parallel()
	dir := ledgerPath(t)
	synctest.Test(t, func(t *testing.T) {
		f := &feed{}
		f.add(10)
		l := open(t, dir, func(c *ledger.Config) { c.Poll = 100 * time.Hour })
		require.NoError(t, l.Follow(f))
		synctest.Wait() // until it has looked at the feed by itself
		seal(t, l)
		f.change(func(f *feed) { f.gone = 10 }) // what was read already is purged: nothing is missing
		f.add(1)
		seal(t, l)
		require.Equal(t, int64(11), l.Status().Size)

		time.Sleep(2 * time.Hour) // the bubble's clock
		f.add(10)
		f.change(func(f *feed) { f.gone = 15 })
		last := seal(t, l)
		var gaps int
		for _, x := range leaves(t, l) {
			if x.Event.Type == ledger.EventGap {
				gaps++
				require.Equal(t, int64(11), x.Pos)
			}
		}
		require.Equal(t, 1, gaps, "events that were removed before the ledger read them leave a record of it")
		require.Equal(t, int64(11+1+6), l.Status().Size)
		_, err := verify(l, exported(t, l, 0, -1), last)
		require.NoError(t, err)
		l.shut()
	})
}

func TestSinkWaitsForTheLog(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Poll = time.Millisecond })
	svc := service(t, func(c *apitoken.Config) {
		c.Sinks = []apitoken.Sink{{Name: "ledger", Auditor: l, MaxLag: time.Minute}}
	})
	require.NoError(t, l.Follow(svc))
	_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
	for e, err := range svc.Events(ctx, apitoken.EventQuery{}) {
		require.NoError(t, err)
		require.NoError(t, l.Audit(ctx, e), "the answer comes when the event is in the log")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.Error(t, l.Audit(ended, anEvent(1)), "an event that is not in the feed is not acknowledged")
}

func TestArchiveAndDrop(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := &feed{}
	f.add(200)
	l := open(t, ledgerPath(t), nil)
	require.NoError(t, l.Follow(f))
	first := seal(t, l)
	f.add(150)
	second := seal(t, l)
	f.add(50)
	last := seal(t, l)

	var archive bytes.Buffer
	require.Error(t, l.Archive(ctx, &archive, 123, func() error { return nil }), "an archive ends at a checkpoint")
	require.ErrorIs(t, l.Archive(ctx, &archive, 200, func() error { return os.ErrClosed }), os.ErrClosed)
	require.Equal(t, int64(0), l.Status().First, "what is not safe elsewhere is not dropped")
	archive.Reset()
	require.NoError(t, l.Archive(ctx, &archive, 200, func() error { return nil }))
	require.Equal(t, int64(200), l.Status().First)
	l = l.reopen(t, nil)
	require.Equal(t, int64(200), l.Status().First)

	rep, err := verify(l, archive.Bytes(), first)
	require.NoError(t, err, "the archive verifies with its own checkpoint")
	require.Equal(t, int64(200), rep.Records)
	rest := exported(t, l, 200, -1)
	rep, err = verify(l, rest, last, first, second)
	require.NoError(t, err, "what is kept verifies alone, and continues the archive")
	require.Equal(t, int64(200), rep.First)
	require.Equal(t, 2, rep.Earlier)
	_, err = verify(l, append(archive.Bytes(), rest...), last, first, second)
	require.NoError(t, err, "both parts together are the whole log")
	_, err = verify(l, rest[bytes.IndexByte(rest, '\n')+1:], last)
	require.ErrorIs(t, err, ledger.ErrTampered, "a beginning that is missing without its first line")

	// An older checkpoint, of a part that is not at hand, needs a proof.
	var part bytes.Buffer
	require.NoError(t, l.Archive(ctx, &part, 350, func() error { return nil }))
	rest = exported(t, l, 350, -1)
	_, err = verify(l, rest, last, first)
	require.Error(t, err)
	require.NotErrorIs(t, err, ledger.ErrTampered)
	p, err := l.ProveConsistency(ctx, 200, 400)
	require.NoError(t, err)
	v := ledger.Verification{Keys: l.keys, Checkpoint: last, Earlier: [][]byte{first}, Proofs: []ledger.ConsistencyProof{p}}
	_, err = ledger.Verify(bytes.NewReader(rest), v)
	require.NoError(t, err)
	v.Proofs[0].Hashes[0][3] ^= 4
	_, err = ledger.Verify(bytes.NewReader(rest), v)
	require.ErrorIs(t, err, ledger.ErrTampered)

	incl, err := l.ProveInclusionAt(ctx, 377, 400)
	require.NoError(t, err)
	_, err = incl.Check(last, l.keys)
	require.NoError(t, err, "what is kept is provable after a drop")
	f.add(100)
	require.NoError(t, l.Follow(f))
	last = seal(t, l)
	_, err = verify(l, exported(t, l, 350, -1), last, second)
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(l.path, "*.jsonl"))
	require.NoError(t, err)
	require.Equal(t, "00000000000000000350.jsonl", filepath.Base(files[0]))
}

func TestWhatWasDroppedDoesNotComeAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := &feed{}
	f.add(100)
	l := open(t, ledgerPath(t), nil)
	require.NoError(t, l.Follow(f))
	first := seal(t, l)
	f.add(30)
	last := seal(t, l)
	require.NoError(t, l.Archive(ctx, io.Discard, 130, func() error { return nil }), "all of it")
	l = l.reopen(t, nil)
	require.NoError(t, l.Follow(f))
	require.NoError(t, l.Audit(ctx, f.events[20]), "a sink that begins anew is told that the log had it")
	require.NoError(t, l.Audit(ctx, f.events[129]))
	f.change(func(f *feed) { f.gone = 129 }) // the feed forgets the ledger's place, and has its last event still
	require.Equal(t, last, seal(t, l))
	f.add(5)
	last = seal(t, l)
	rep, err := verify(l, exported(t, l, 130, -1), last)
	require.NoError(t, err)
	require.Equal(t, int64(5), rep.Records)
	p, err := l.ProveConsistency(ctx, 100, 135)
	require.NoError(t, err)
	require.NoError(t, p.Check(first, last, l.keys))
	_, _, err = l.ProveInclusion(ctx, f.events[3].ID)
	require.ErrorIs(t, err, apitoken.ErrNotFound)
}

func TestSealsAtItsInterval(t *testing.T) {
	t.Parallel()
	dir := ledgerPath(t)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var got [][]byte
		published := func() [][]byte {
			mu.Lock()
			defer mu.Unlock()
			return got
		}
		f := &feed{}
		f.add(3)
		l := open(t, dir, func(c *ledger.Config) {
			c.Interval, c.Poll = time.Minute, time.Second
			c.Publish = []ledger.Publisher{ledger.PublisherFunc(func(_ context.Context, signed []byte) error {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, signed)
				return nil
			})}
		})
		require.NoError(t, l.Follow(f))
		time.Sleep(59 * time.Second) // the bubble's clock
		synctest.Wait()
		require.Empty(t, published())
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.Len(t, published(), 1)
		c, err := l.keys.Open(published()[0])
		require.NoError(t, err)
		require.Equal(t, int64(3), c.Size)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Len(t, published(), 1, "without new events there is no new checkpoint")
		l.shut()
	})
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	dir, err := ledger.OpenDir(ledgerPath(t), nil)
	require.NoError(t, err)
	defer dir.Close()
	signer, _ := keyPair(t, origin)
	for field, c := range map[string]ledger.Config{
		"Storage":   {Signer: signer},
		"Signer":    {Storage: dir},
		"Interval":  {Storage: dir, Signer: signer, Interval: time.Millisecond},
		"Poll":      {Storage: dir, Signer: signer, Poll: -1},
		"Quorum":    {Storage: dir, Signer: signer, Quorum: 1},
		"Witnesses": {Storage: dir, Signer: signer, Witnesses: []ledger.Witness{{}}},
		"Publish":   {Storage: dir, Signer: signer, Publish: []ledger.Publisher{nil}},
	} {
		_, err := ledger.Open(c)
		require.ErrorContains(t, err, field)
	}
}
