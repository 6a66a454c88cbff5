package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
)

func (a *app) hashSecretCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hash-secret [FILE]", Short: "Make of a client's secret what a configuration may hold",
		Long: `hash-secret reads a secret that you chose from a file, or from the standard input, and prints what Clients.Declare takes in its place. The
client itself goes on with the secret. It takes a tenth of a second, on purpose.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("", "hash-secret takes one file, or reads the standard input")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			path := "-"
			if len(args) == 1 {
				path = args[0]
			}
			secret, err := a.secret(path)
			if err != nil {
				return err
			}
			hash, err := apitoken.HashSecret(secret)
			if err != nil {
				return err
			}
			if a.json {
				return a.print(map[string]string{"hash": hash})
			}
			_, err = fmt.Fprintln(a.out, hash)
			return err
		},
	}
}
