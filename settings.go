package apitoken

import (
	"maps"
	"slices"
	"time"
)

// Settings is what a service goes by: its Config as New checked it, defaults filled in. It holds nothing that is secret.
type Settings struct {
	Issuer     string
	FAPI       bool             // Config.FAPI
	FirstParty string           // client_id of tokens issued without a Client
	Audiences  []string         // Config.Audience first
	Scopes     map[Scope]string // known scopes and their descriptions; nil: any well-formed one
	Lifetimes  Lifetimes
	Limits     Limits
	// MaxStaleness is how old this process's view of revocations may be before it refuses: a revocation that it wrote is in
	// force within as long in every process with the same setting.
	MaxStaleness time.Duration
	KeyRotation  time.Duration            // negative: only by call
	KeepEvents   time.Duration            // zero: for ever
	SinkLags     map[string]time.Duration // Sink.MaxLag by name; zero: nothing waits for the sink
}

// Settings returns what the service goes by, in memory of the caller's own: for pages, health checks and metrics that state
// a limit beside a figure.
func (s *Service) Settings() Settings {
	c := &s.cfg
	lags := make(map[string]time.Duration, len(c.Sinks))
	for _, sink := range c.Sinks {
		lags[sink.Name] = sink.MaxLag
	}
	return Settings{
		Issuer: c.Issuer, FAPI: c.FAPI, FirstParty: c.FirstParty, Audiences: slices.Clone(s.audiences), Scopes: maps.Clone(c.Scopes),
		Lifetimes: c.Lifetimes, Limits: c.Limits, MaxStaleness: c.Validation.MaxStaleness,
		KeyRotation: c.KeyRotation, KeepEvents: c.KeepEvents, SinkLags: lags,
	}
}
