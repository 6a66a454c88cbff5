package roles_test

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/roles"
	"github.com/apitoken-go/apitoken/store"
)

func record(role, data string) store.Record {
	return store.Record{Kind: store.KindRole, ID: role, Data: []byte(data)}
}

// Who asks for roles names each once, and knows what it asks for. Who has one that is gone keeps the others.
func TestRoles(t *testing.T) {
	t.Parallel()
	var b roles.Book[string]
	require.NoError(t, b.Apply(record("clerk", `{"v":1,"scopes":["orders:read","orders:write"]}`)))
	require.NoError(t, b.Apply(record("guest", `{"v":1,"scopes":["orders:read"]}`)))
	all, err := b.Expand([]string{"clerk", "guest"})
	require.NoError(t, err)
	require.Equal(t, []string{"orders:read", "orders:write", "orders:read"}, all)

	many := make([]string, roles.Max+1)
	for i := range many {
		many[i] = strconv.Itoa(i)
	}
	for name, list := range map[string][]string{"unknown": {"clerk", "admin"}, "named twice": {"clerk", "clerk"}, "too many": many} {
		_, err := b.Expand(list)
		require.ErrorIs(t, err, fault.InvalidRequest, name)
	}
	all, err = b.Give([]string{"admin", "guest"})
	require.NoError(t, err)
	require.Equal(t, []string{"orders:read"}, all)

	require.Len(t, b.All(), 2)
	b.Reset()
	require.Empty(t, b.All())
	_, ok, err := b.Find("clerk")
	require.False(t, ok)
	require.NoError(t, err)
}

// A role that cannot be read is unavailable until it can, and never one that gives nothing.
func TestARoleThatCannotBeRead(t *testing.T) {
	t.Parallel()
	var b roles.Book[string]
	require.NoError(t, b.Apply(record("clerk", `{"v":1,"scopes":["orders:read"]}`)))
	bad := record("clerk", `{"v":2,"scopes":[]}`)
	require.Error(t, b.Apply(bad))
	b.SetAside(bad, errors.New("of a newer version"))
	_, err := b.Give([]string{"clerk"})
	require.ErrorIs(t, err, fault.Unavailable)
	_, err = b.Expand([]string{"clerk"})
	require.ErrorIs(t, err, fault.Unavailable)
	require.Empty(t, b.All())

	require.NoError(t, b.Apply(record("clerk", `{"v":1,"scopes":["orders:write"]}`)))
	all, err := b.Expand([]string{"clerk"})
	require.NoError(t, err)
	require.True(t, slices.Equal([]string{"orders:write"}, all))
}
