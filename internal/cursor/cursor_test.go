package cursor

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// A cursor is read by queries of its own order, and refused by all others.
func TestACursorIsOfOneOrder(t *testing.T) {
	t.Parallel()
	orders := []store.Query{
		{Kind: "grant"}, {Kind: "grant", Newest: true}, {Kind: "grant", ExpiresBefore: 1}, {Kind: "grants"},
		{Kind: store.KindEvent}, {Kind: store.KindEvent, Newest: true},
	}
	for i, from := range orders {
		for k, to := range orders {
			to.Cursor = Text(&from, "a place\x00\xff")
			place, err := Place(&to)
			if i != k {
				require.ErrorIs(t, err, store.ErrInvalid, "%+v in %+v", from, to)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, "a place\x00\xff", place)
		}
	}
	// With a selector, what ends comes in the order of other listings.
	q := store.Query{Kind: "grant", Subject: "alice", ExpiresBefore: 1, Cursor: Text(&store.Query{Kind: "grant"}, "x")}
	place, err := Place(&q)
	require.NoError(t, err)
	require.Equal(t, "x", place)
}

func TestNoCursor(t *testing.T) {
	t.Parallel()
	place, err := Place(&store.Query{Kind: "grant"})
	require.NoError(t, err)
	require.Empty(t, place)
	for _, text := range []string{"?", "YQ", "YQ==", Text(&store.Query{Kind: "grant"}, ""), Text(&store.Query{Kind: "grant"}, "x") + "="} {
		_, err := Place(&store.Query{Kind: "grant", Cursor: text})
		require.ErrorIs(t, err, store.ErrInvalid, text)
	}
}

func TestPlaceText(t *testing.T) {
	t.Parallel()
	q := store.Query{Kind: "grant"}
	for place, ok := range map[string]bool{"": true, "an ID": true, "ü": true, "a\x00": false, "\xff": false} {
		if q.Cursor = ""; place != "" {
			q.Cursor = Text(&q, place)
		}
		got, err := PlaceText(&q)
		if !ok {
			require.ErrorIs(t, err, store.ErrInvalid)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, place, got)
	}
}

// Only the text that Text writes for a position is read back: a position has exactly one text.
func FuzzPlace(f *testing.F) {
	for _, q := range []store.Query{{Kind: "k"}, {Kind: "k", Newest: true}, {Kind: "k", ExpiresBefore: 1}} {
		f.Add(Text(&q, "a place"), q.Newest, q.ExpiresBefore)
	}
	f.Fuzz(func(t *testing.T, text string, newest bool, before int64) {
		q := store.Query{Kind: "k", Newest: newest, ExpiresBefore: before, Cursor: text}
		place, err := Place(&q)
		if err == nil && place != "" && Text(&q, place) != text {
			t.Fatalf("%q reads as %q, which is written %q", text, place, Text(&q, place))
		}
		if expires, id, err := ReadEnding(place); err == nil {
			if e, i, err := ReadEnding(Ending(expires, id)); err != nil || e != expires || i != id {
				t.Fatalf("%d %q reads as %d %q, %v", expires, id, e, i, err)
			}
		}
	})
}

func TestEnding(t *testing.T) {
	t.Parallel()
	expires, id, err := ReadEnding(Ending(1<<62, "an id with spaces"))
	require.NoError(t, err)
	require.EqualValues(t, 1<<62, expires)
	require.Equal(t, "an id with spaces", id)
	for _, place := range []string{"", "12", " x", "x y", "99999999999999999999 x"} {
		_, _, err := ReadEnding(place)
		require.ErrorIs(t, err, store.ErrInvalid, place)
	}
}
