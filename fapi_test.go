package apitoken_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// TestAnAPIOfFAPI: with Validation.FAPI alone an API takes only bound tokens of the profile's algorithms. Package oauthhttp holds the
// rest of the profile.
func TestAnAPIOfFAPI(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	bound := func(svc *apitoken.Service) string {
		return issue(t, svc, apitoken.Request{Subject: "alice", Binding: apitoken.BindCertificate([32]byte{1})}).Access.Reveal()
	}
	svc := service(t, func(c *apitoken.Config) { c.Validation.FAPI = true })
	_, err := svc.Validate(ctx, apitoken.Credential{Token: bound(svc), CertSHA256: [32]byte{1}})
	require.NoError(t, err)
	plain := issue(t, svc, apitoken.Request{Subject: "alice"}).Access.Reveal()
	for range 2 { // the second time as well: nothing of it was kept
		_, err = svc.Validate(ctx, apitoken.Credential{Token: plain})
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, "bound to nothing")
	}
	require.Equal(t, []string{"PS256", "ES256", "EdDSA"}, svc.ProofAlgorithms())

	rs := service(t, func(c *apitoken.Config) { c.Algorithm, c.Validation.FAPI = "RS256", true })
	_, err = rs.Validate(ctx, apitoken.Credential{Token: bound(rs), CertSHA256: [32]byte{1}})
	require.ErrorIs(t, err, apitoken.ErrInvalidToken, "signed by RS256")
}
