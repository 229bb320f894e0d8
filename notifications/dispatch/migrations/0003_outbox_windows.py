"""Where the use of each outbox's limit is kept; updated in place with every chunk of hand-overs."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('dispatch', '0002_queue_storage'),
    ]

    operations = [
        migrations.CreateModel(
            name='OutboxWindow',
            fields=[
                ('pk', models.CompositePrimaryKey('owner', 'outbox', blank=True, editable=False, primary_key=True, serialize=False)),
                ('owner', models.IntegerField(help_text="The tenant's key; 0 is the platform.")),
                ('outbox', models.UUIDField()),
                ('ends', models.JSONField(default=dict)),
            ],
        ),
    ]
