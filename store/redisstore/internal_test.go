package redisstore

import (
	"bytes"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// TestClockBelievesWhatStood checks that a server's clock which jumps ahead purges nothing for an hour, and that what was
// believed before is believed at once.
func TestClockBelievesWhatStood(t *testing.T) {
	t.Parallel()
	const start = int64(1_800_000_000_000)
	wall, mono := start, time.Duration(0)
	c := &clock{mono: func() time.Duration { return mono }}
	step := func(d time.Duration) { wall, mono = wall+d.Milliseconds(), mono+d }
	if got := c.believe(wall, start-shareEvery); got != start {
		t.Fatalf("the first: %d", got-start)
	}
	step(time.Minute)
	if got := c.believe(wall, start); got != wall {
		t.Fatalf("time passes: %d", got-wall)
	}
	const jump = int64(365 * 24 * 3600 * 1000)
	wall += jump
	shared := start
	for range 59 {
		step(time.Minute)
		got := c.believe(wall, shared)
		if got > wall-jump+shareEvery {
			t.Fatalf("believed %d ms of a jump", got-(wall-jump))
		}
		shared = max(shared, got)
	}
	step(2 * time.Minute)
	if got := c.believe(wall, shared); got != wall {
		t.Fatalf("after an hour it has stood: %d", got-wall)
	}
	wall = start
	if got := c.believe(wall, shared); got > wall {
		t.Fatal("never after the server's clock")
	}
}

// valueOf puts a record together as the script does.
func valueOf(v store.Version, written, pos int64, r *store.Record) string {
	body, _ := putBody(v, r)
	b := append48(append([]byte(nil), v[:]...), uint64(written))
	for _, n := range [...]int64{pos, r.Expires, r.Expires} {
		for s := 56; s >= 0; s -= 8 {
			b = append(b, byte(n>>s))
		}
	}
	return string(append(b, body...))
}

func TestRecordRoundTrip(t *testing.T) {
	t.Parallel()
	r := store.Record{
		Kind: "grant", ID: "g/1", Expires: 7, Subject: "s", Client: "c", Grant: "g", Token: "t", Type: "y", Data: []byte("data"),
	}
	got, err := decodeRecord(r.Kind, r.ID, valueOf(store.Version{9}, 5, 6, &r), 3)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != r.ID || got.Pos != (store.Position{History: 3, N: 6}) || got.Written != 5 || got.Type != r.Type || got.Expires != 7 ||
		got.Version != (store.Version{9}) || got.Subject != "s" || got.Client != "c" || got.Grant != "g" || got.Token != "t" || !bytes.Equal(got.Data, r.Data) {
		t.Fatalf("%+v, want %+v", got, r)
	}
}

func FuzzDecode(f *testing.F) {
	r := store.Record{Kind: "k", ID: "i", Subject: "s", Data: []byte("d")}
	f.Add(valueOf(store.Version{1}, 1, 1, &r))
	f.Add(string(make([]byte, sizeEvent)) + string(eventBody(store.Version{}, &r)))
	f.Fuzz(func(t *testing.T, v string) {
		if r, err := decodeRecord("k", "i", v, 1); err == nil {
			again := valueOf(r.Version, r.Written, r.Pos.N, &r)
			if again[:38] != v[:38] || again[sizeRecord:] != v[sizeRecord:] {
				t.Fatalf("%q reads as what is written %q", v, again)
			}
		}
		_, _ = decodeEvent(v)
		_ = infoField(v, "role")
		_ = atLeast(v, 7, 2)
	})
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{"7.0.15": false, "7.2.0": true, "7.10.1": true, "8.0": true, "6.9.9": false, "": false, "x": false} {
		if atLeast(v, 7, 2) != want {
			t.Errorf("%q is at least 7.2: %v", v, !want)
		}
	}
}

// TestConfirmed reads the answers of WAIT and of WAITAOF, which an older server does not know.
func TestConfirmed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		o    Options
		val  any
		want bool
	}{
		{"one of one", Options{WaitReplicas: 1}, int64(1), true},
		{"none of one", Options{WaitReplicas: 1}, int64(0), false},
		{"disk", Options{WaitAOF: true}, []any{int64(1), int64(0)}, true},
		{"no disk", Options{WaitAOF: true}, []any{int64(0), int64(2)}, false},
		{"disk and no replica", Options{WaitAOF: true, WaitReplicas: 1}, []any{int64(1), int64(0)}, false},
		{"disk and replica", Options{WaitAOF: true, WaitReplicas: 1}, []any{int64(1), int64(1)}, true},
		{"nonsense", Options{WaitAOF: true}, "OK", false},
	} {
		s := &Store{o: tc.o}
		if err := s.confirmed(tc.val); (err == nil) != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
