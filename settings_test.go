package apitoken_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/export"
)

func TestSettingsAreWhatTheServiceGoesBy(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t, func(c *apitoken.Config) {
		c.Audiences = []string{"https://other.test"}
		c.Scopes = map[apitoken.Scope]string{"orders:read": "See orders"}
		c.Limits.APIKeysPerSubject = 20
		c.KeepEvents = 48 * time.Hour
		c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: export.NewSlogAuditor(slog.New(slog.DiscardHandler)), MaxLag: time.Minute}}
	})

	got := svc.Settings()
	require.Equal(t, apitokentest.Issuer, got.Issuer)
	require.Equal(t, "first-party", got.FirstParty, "defaults are filled in")
	require.Equal(t, []string{apitokentest.Audience, "https://other.test"}, got.Audiences)
	require.Equal(t, 10*time.Second, got.MaxStaleness)
	require.Equal(t, 5*time.Minute, got.Lifetimes.Access)
	require.Equal(t, 90*24*time.Hour, got.KeyRotation)
	require.Equal(t, 20, got.Limits.APIKeysPerSubject)
	require.Equal(t, 48*time.Hour, got.KeepEvents)
	require.Equal(t, map[string]time.Duration{"siem": time.Minute}, got.SinkLags)

	got.Scopes["orders:write"], got.Audiences[0] = "", ""
	require.Equal(t, map[apitoken.Scope]string{"orders:read": "See orders"}, svc.Settings().Scopes, "a caller changes its own copy only")
	require.Equal(t, apitokentest.Audience, svc.Settings().Audiences[0])
}
