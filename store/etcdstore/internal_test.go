package etcdstore

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

func TestDueIsEarlierAndSettles(t *testing.T) {
	t.Parallel()
	const now, month = int64(1_800_000_000_000), int64(30 * 24 * 3600 * 1000)
	distinct := map[int64]bool{}
	for at := now; at < now+month; at += 60_000 {
		expires := at + month
		due := dueAt(expires, at)
		if due > expires || due <= at {
			t.Fatalf("an index entry is found no later than the expiry, and not before now: now %d due %d expires %d", at, due, expires)
		}
		distinct[due] = true
	}
	if len(distinct) > 5 {
		t.Fatalf("%d index entries for a grant that is used each minute for a month", len(distinct))
	}
	for left := int64(-5); left < 10; left++ {
		if due := dueAt(now+left, now); due > now+left {
			t.Fatalf("due %d after expires %d", due, now+left)
		}
	}
}

func TestSuccessorAndBetween(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, want string }{{"a", "b"}, {"a\xff", "b"}, {"\x00", "\x01"}, {"a\xff\xff", "b"}} {
		if got, ok := successor(tc.in); !ok || got != tc.want {
			t.Errorf("successor(%q) = %q", tc.in, got)
		}
	}
	if _, ok := successor("\xff\xff"); ok {
		t.Error("nothing comes after all that begin with ff")
	}
	for range 10_000 {
		a, b := randomKey(), randomKey()
		if a > b {
			a, b = b, a
		}
		if m := between(a, b); m < a || m > b {
			t.Fatalf("between(%q, %q) = %q", a, b, m)
		}
	}
}

func randomKey() string {
	b := make([]byte, rand.N(6))
	for i := range b {
		b[i] = byte(rand.N(4) * 85)
	}
	return string(b)
}

func TestRecordRoundTrip(t *testing.T) {
	t.Parallel()
	r := store.Record{
		Kind: "grant", ID: "g/1", Expires: 7, Subject: "s", Client: "c", Grant: "g", Token: "t", Type: "y", Data: []byte("data"),
	}
	b := encodeRecord(&r, store.Version{9})
	stamp(b, 5, 6)
	got, err := decodeRecord(b, 3)
	if err != nil {
		t.Fatal(err)
	}
	r.Version, r.Written, r.Pos = store.Version{9}, 5, store.Position{History: 3, N: 6}
	if got.ID != r.ID || got.Pos != r.Pos || got.Type != r.Type || got.Expires != r.Expires || got.Version != r.Version || !bytes.Equal(got.Data, r.Data) {
		t.Fatalf("%+v, want %+v", got, r)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, err := decodeRecord(c, 3); err == nil {
			t.Fatalf("a flipped bit in byte %d is believed", i)
		}
	}
}

func FuzzDecode(f *testing.F) {
	r := store.Record{Kind: "k", ID: "i"}
	b := encodeRecord(&r, store.Version{1})
	stamp(b, 1, 1)
	f.Add(b)
	f.Add(encodeEvents(store.Version{1}, 1, 1, []store.Record{{ID: "e"}}, nil, 0))
	f.Add([]byte((&fingerprint{members: []uint64{1}}).encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > sizeCRC { // past the checksum
			c := bytes.Clone(b)
			seal(c)
			_, _ = decodeRecord(c, 1)
			_, _ = decodeEvents(c)
		}
		_, _ = decodeFingerprint(b)
		_, _ = parse64(b)
		_, _ = parseHex64(string(b))
		_, _ = decodeEventCursor(string(b))
	})
}

// TestClockBelievesWhatStood checks that one process's clock which jumps ahead purges nothing for an hour, and that what the
// fleet has believed is believed at once.
func TestClockBelievesWhatStood(t *testing.T) {
	t.Parallel()
	const start = int64(1_800_000_000_000)
	wall, mono := start, time.Duration(0)
	c := newClock(func() time.Time { return time.UnixMilli(wall) }, func() time.Duration { return mono })
	step := func(d time.Duration) { wall, mono = wall+d.Milliseconds(), mono+d }
	if got := c.believe(start); got != start {
		t.Fatalf("a fleet's first: %d", got-start)
	}
	step(time.Minute)
	if got := c.believe(start); got != wall {
		t.Fatalf("time passes: %d", got-wall)
	}
	const jump = int64(365 * 24 * 3600 * 1000)
	wall += jump
	shared := start
	for range 59 {
		step(time.Minute)
		got := c.believe(shared)
		if got > wall-jump+shareEvery {
			t.Fatalf("believed %d ms of a jump", got-(wall-jump))
		}
		shared = max(shared, got)
	}
	step(2 * time.Minute)
	if got := c.believe(shared); got != wall {
		t.Fatalf("after an hour it has stood: %d", got-wall)
	}
	wall = start
	if got := c.believe(shared); got > wall {
		t.Fatal("never after the wall clock")
	}
}

func TestFingerprintSurvives(t *testing.T) {
	t.Parallel()
	f := fingerprint{members: []uint64{1, 2, 3}}
	for _, tc := range []struct {
		now  []uint64
		want bool
	}{{[]uint64{1, 2, 3}, true}, {[]uint64{1, 2, 4}, true}, {[]uint64{1, 4, 5}, false}, {[]uint64{3}, false}, {nil, true}} {
		if got := f.survives(tc.now); got != tc.want {
			t.Errorf("members %v after %v: %v", tc.now, f.members, got)
		}
	}
}

func TestBatchesCoverEverythingOnce(t *testing.T) {
	t.Parallel()
	n := newSpace(&Store{prefix: "p/"}, "", nil)
	var entries []entry
	var want []string
	for i := range 40 {
		e := entry{place: place(int64(i/3+1), int64(i%3)*store.MaxEvents), history: 1}
		for j := range 1 + i%16 {
			id := strings.Repeat("x", 1+i%7) + string(rune('a'+j))
			data := make([]byte, 100)
			if i%10 == 9 {
				data = make([]byte, store.MaxData)
			}
			e.events = append(e.events, store.Record{Kind: store.KindEvent, ID: id, Data: data})
			e.numbers = append(e.numbers, (i%3)*store.MaxEvents+j)
			want = append(want, id)
		}
		entries = append(entries, e)
	}
	var got []string
	var cur shipped
	seen := map[store.Version]bool{}
	for i := 0; i < len(entries); {
		b := n.batch(entries[i:], &cur, 1)
		size := 0
		for k := range b.events {
			got = append(got, b.events[k].ID)
			size += b.events[k].Size()
		}
		id := n.shipID(&b)
		if len(b.events) == 0 || len(b.events) > store.MaxEvents || size > shipBytes || seen[id] {
			t.Fatalf("batch of %d events, %d bytes", len(b.events), size)
		}
		if to, ours := n.shippedTo(id); !ours || to != b.next.place {
			t.Fatal("a batch's id tells how far it goes")
		}
		seen[id] = true
		cur = b.next
		cur.version = id
		i += b.complete
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatal("every event goes into one batch, in order")
	}
	if !cur.has(&entries[39], entries[39].last(), 1) {
		t.Fatal("and then all are shipped")
	}
	if cur.has(&entries[0], entries[0].last(), 2) != true || (&shipped{history: 9, place: 1 << 40, version: store.Version{1}}).has(&entry{place: 1, history: 2}, 1, 2) {
		t.Fatal("of a new history nothing was shipped by a cursor of the old one")
	}
}
