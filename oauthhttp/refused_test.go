package oauthhttp_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// TestRefusedClientsLeaveAnEvent: who proved who it is and asks for too much is in the log, with the limit that said no.
func TestRefusedClientsLeaveAnEvent(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, nil)
	s.client("plain", func(c *apitoken.Client) {
		c.GrantTypes, c.MayImpersonate = []string{"client_credentials"}, false
		c.Scopes = apitoken.Scopes{"orders:read"}
	})
	list := func(reason string) (out []apitoken.Event) {
		for e, err := range s.svc.Events(context.Background(), apitoken.EventQuery{Type: event.Refused}) {
			require.NoError(t, err)
			if e.Reason == reason {
				out = append(out, e)
			}
		}
		return out
	}
	own := url.Values{"grant_type": {"client_credentials"}}
	s.token(merge(own, "scope", "orders:delete"), s.as("plain")).refused(400, "invalid_scope")
	require.Len(t, list("issue"), 1)
	require.Equal(t, "plain", list("issue")[0].Client)
	require.Contains(t, list("issue")[0].Extra["why"], "orders:delete")

	for n := range 100 {
		s.token(merge(own, "scope", fmt.Sprintf("a::%d", n)), s.as("plain")).refused(400, "invalid_scope")
	}
	total := 0
	for _, e := range append(list("issue"), list("token")...) {
		require.Equal(t, "plain", e.Client)
		total += e.Count
	}
	require.Equal(t, 101, total, "each is counted once")
	require.LessOrEqual(t, len(list("issue"))+len(list("token")), 4, "in few events")

	s.token(redemption("x"), s.as("plain")).refused(400, "unauthorized_client")
	require.Len(t, list("grant_type"), 1)
	require.Equal(t, "plain", list("grant_type")[0].Client)

	s.register(metadata{"redirect_uris": []string{callback}, "scope": "admin"}, bearer(initial)).refused(400, "invalid_client_metadata")
	require.Len(t, list("registration"), 1)
	require.Equal(t, "ops", list("registration")[0].Subject)
	require.NotEmpty(t, list("registration")[0].TokenID)
	require.NotEmpty(t, list("registration")[0].Extra["why"])
}
