package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken/admin"
)

func (a *app) signingKeysCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "signing-keys", Short: "List signing keys, rotate and withdraw them", Args: exactly(0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			return lists(c, a, 0, []string{"KEY", "ALGORITHM", "STATE", "SINCE", "UNTIL", "AUDIENCE", "KEPT"}, func(k admin.SigningKeyInfo) []string {
				place := "store"
				if k.Outside {
					place = "outside"
				}
				return []string{k.ID, k.Algorithm, k.State, at(k.Since), at(k.Until), or(k.Audience, "all"), place}
			}, func(ctx context.Context, s *service, _ string, _ int) (admin.Page[admin.SigningKeyInfo], error) {
				return s.SigningKeys(ctx)
			})
		},
	}
	act := func(use, about, long, said string, f func(context.Context, *service) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: about, Long: long, Args: exactly(0, ""), RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				if err := f(ctx, s); err != nil {
					return err
				}
				return a.didIt(said, "done", use)
			})
		}}
	}
	var reason string
	var yes bool
	compromise := &cobra.Command{
		Use: "compromise KEY", Short: "Withdraw a signing key at once, with all that it signed", Args: exactly(1, "the ID of a signing key"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needReason(reason); err != nil {
				return err
			}
			if !yes {
				return usage("Add --yes: every token that the key signed is refused from then on.", "nothing was withdrawn")
			}
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				if err := s.Compromise(ctx, args[0], reason); err != nil {
					return err
				}
				return a.didIt("Signing key "+args[0]+" is withdrawn", "compromised", args[0])
			})
		},
	}
	reasonFlag(compromise, &reason)
	compromise.Flags().BoolVar(&yes, "yes", false, "it is meant")
	c.AddCommand(compromise,
		act("rotate", "Bring a new signing key forward", "rotate brings a new signing key forward, as soon as every validator can know it: 15 minutes at most. Tokens of the older one stay good.",
			"A new key signs as soon as every validator can know it", func(ctx context.Context, s *service) error { return s.RotateSigningKeys(ctx) }),
		act("rotate-secrets", "Make a new root secret", "rotate-secrets makes a new root secret and moves the signing keys under it: docs/keys.md says when.",
			"A new root secret is made", func(ctx context.Context, s *service) error { return s.RotateSecrets(ctx) }),
		act("rewrap", "Seal the root secrets again, with the current key-encryption key", "rewrap seals the root secrets again: after a new key-encryption key was put in front of the old one, before the old one is dropped.",
			"The root secrets are sealed with the current key", func(ctx context.Context, s *service) error { return s.Rewrap(ctx) }))
	return c
}
