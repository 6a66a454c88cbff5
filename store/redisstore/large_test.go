package redisstore_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// Redis writes times over 17 digits with an exponent: a page that ends at such a record goes on behind it.
func TestListOfWhatExpiresInTheFarFuture(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t, nil)
	var want []string
	for i, expires := range []int64{1 << 40, 1 << 53, 1<<53 + 1, 1 << 58, 1 << 61, 1 << 61, 1<<61 + 1} {
		id := string(rune('a' + i))
		_, err := s.Apply(ctx, &store.Change{ID: store.Version{byte(i + 1)}, Puts: []store.Put{{Record: store.Record{Kind: "grant", ID: id, Expires: expires}}}})
		require.NoError(t, err)
		want = append(want, id)
	}
	for limit := range 4 {
		q := store.Query{Kind: "grant", ExpiresBefore: math.MaxInt64, Limit: limit}
		var got []string
		for range want {
			p, err := s.List(ctx, q)
			require.NoError(t, err)
			for _, r := range p.Records {
				got = append(got, r.ID)
			}
			if q.Cursor = p.Cursor; q.Cursor == "" {
				break
			}
		}
		require.Equal(t, want, got)
	}
}
