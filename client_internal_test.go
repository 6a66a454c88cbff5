package apitoken

import (
	"testing"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store/memstore"
)

// Names have to look like a client with a chosen secret for as long as there is one.
func TestClientsWithAChosenSecretAreCounted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	svc, err := New(Config{Issuer: "https://a.example.com", Audience: "https://b.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	is.NoError(t, err)
	defer svc.Close()
	c, generated, err := svc.Clients.Create(ctx, Client{})
	is.NoError(t, err)
	is.Zero(t, svc.Clients.chosen.Load())
	_, err = svc.Clients.Authenticate(ctx, ClientAuth{ID: "made up", Secret: NewSecret("no secret of any client")})
	is.ErrorIs(t, err, ErrInvalidClient)

	chosen := NewSecret("a secret of the host's choice")
	is.NoError(t, svc.Clients.Declare(ctx, Client{ID: "batch"}, chosen))
	is.EqualValues(t, 1, svc.Clients.chosen.Load())
	for _, a := range []ClientAuth{{ID: c.ID, Secret: generated}, {ID: "batch", Secret: chosen}} {
		_, err = svc.Clients.Authenticate(ctx, a)
		is.NoError(t, err)
	}

	is.NoError(t, svc.Clients.Declare(ctx, Client{ID: "batch"}, generated))
	is.Zero(t, svc.Clients.chosen.Load(), "the last chosen secret is gone")
}
