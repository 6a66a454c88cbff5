package ledger_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const origin = "auth.example.com/audit"

func keyPair(t testing.TB, name string) (note.Signer, note.Verifier) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	require.NoError(t, err)
	s, err := note.NewSigner(skey)
	require.NoError(t, err)
	v, err := ledger.ParseKey(vkey)
	require.NoError(t, err)
	return s, v
}

func sign(t testing.TB, s note.Signer, c ledger.Checkpoint) []byte {
	t.Helper()
	out, err := note.Sign(&note.Note{Text: c.Text()}, s)
	require.NoError(t, err)
	return out
}

// treeOf is the root of a tree over lines, computed by tlog's own stored hashes and not by this package's.
func treeOf(t testing.TB, lines [][]byte) tlog.Hash {
	t.Helper()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, x := range at {
			out[i] = stored[x]
		}
		return out, nil
	})
	for i, line := range lines {
		h, err := tlog.StoredHashes(int64(i), line, reader)
		require.NoError(t, err)
		stored = append(stored, h...)
	}
	root, err := tlog.TreeHash(int64(len(lines)), reader)
	require.NoError(t, err)
	return root
}

var eventTime = time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC)

// event is the nth event of a made-up log.
func anEvent(n int) apitoken.Event {
	at := eventTime.Add(time.Duration(n) * time.Millisecond)
	return apitoken.Event{
		ID: fmt.Sprintf("01%024d", n), Time: at, Type: event.Issued, OK: true,
		Actor: "console", Subject: fmt.Sprintf("user-%d", n%50), Client: "web", TokenID: fmt.Sprintf("tok-%d", n),
		Scopes: apitoken.Scopes{"orders:read"},
		Origin: apitoken.Origin{Address: netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}), UserAgent: "curl/8"},
	}
}

func lineOf(t testing.TB, pos int, e apitoken.Event) []byte {
	t.Helper()
	l := ledger.Leaf{Pos: int64(pos), Event: e}
	line, err := l.AppendText(nil)
	require.NoError(t, err)
	return line
}

func join(lines [][]byte) []byte {
	return append(bytes.Join(lines, []byte("\n")), '\n')
}

// log is an opened ledger and what it is made of.
type log struct {
	*ledger.Ledger
	dir    *ledger.Dir
	path   string
	signer note.Signer
	keys   ledger.Keys
}

func open(t testing.TB, path string, change func(*ledger.Config)) *log {
	t.Helper()
	signer, key := keyPair(t, origin)
	return openAs(t, path, signer, key, change)
}

func openAs(t testing.TB, path string, signer note.Signer, key note.Verifier, change func(*ledger.Config)) *log {
	t.Helper()
	dir, err := ledger.OpenDir(path, &ledger.DirOptions{SegmentRecords: 64})
	require.NoError(t, err)
	c := ledger.Config{Storage: dir, Signer: signer, Interval: time.Hour, Poll: time.Hour, Watch: -1}
	if change != nil {
		change(&c)
	}
	l, err := ledger.Open(c)
	if err != nil {
		require.NoError(t, dir.Close())
	}
	require.NoError(t, err)
	out := &log{l, dir, path, signer, ledger.Keys{Log: []note.Verifier{key}}}
	t.Cleanup(out.shut)
	return out
}

func (l *log) shut() {
	_ = l.Close()
	_ = l.dir.Close()
}

// reopen opens the same directory again.
func (l *log) reopen(t testing.TB, change func(*ledger.Config)) *log {
	t.Helper()
	l.shut()
	return openAs(t, l.path, l.signer, l.keys.Log[0], change)
}

// feed is a Source that a test fills. Like a store's, it gives no cursor at its end.
type feed struct {
	mu     sync.Mutex // guards both, where a ledger reads by itself
	events []apitoken.Event
	gone   int // the first that is kept
}

func (f *feed) EventPage(_ context.Context, _ apitoken.EventQuery, cursor string, limit int) ([]apitoken.Event, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from := f.gone
	if cursor != "" {
		if _, err := fmt.Sscan(cursor, &from); err != nil {
			return nil, "", err
		}
		if from < f.gone {
			return nil, "", &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "trimmed"}
		}
	}
	list := f.events[min(from, len(f.events)):]
	if len(list) <= limit {
		return append([]apitoken.Event(nil), list...), "", nil
	}
	return append([]apitoken.Event(nil), list[:limit]...), fmt.Sprint(from + limit), nil
}

// change lets a test do something to the feed while a ledger reads it.
func (f *feed) change(do func(*feed)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f)
}

func (f *feed) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range n {
		f.events = append(f.events, anEvent(len(f.events)))
	}
}

func seal(t testing.TB, l *log) []byte {
	t.Helper()
	signed, err := l.Seal(context.Background())
	require.NoError(t, err)
	return signed
}

func exported(t testing.TB, l *log, from, to int64) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, l.Export(context.Background(), &out, from, to))
	return out.Bytes()
}

func verify(l *log, export, checkpoint []byte, earlier ...[]byte) (ledger.Report, error) {
	return ledger.Verify(bytes.NewReader(export), ledger.Verification{Keys: l.keys, Checkpoint: checkpoint, Earlier: earlier})
}

func ledgerPath(t testing.TB) string { return filepath.Join(t.TempDir(), "ledger") }

// service is a real one in memory.
func service(t testing.TB, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true}
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	return svc
}
